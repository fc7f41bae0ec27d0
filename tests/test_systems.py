"""Every published system runs by its command at both scales, composes with the others, and has its page."""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any

import diffusion_checkpoints
import injection_checkpoints
import pytest
import torch
import vision_checkpoints
from conftest import said, task

import posttrain as pt
from posttrain import systems, tiny
from posttrain.advantage import by_decision, centred, leave_one_out, normalised
from posttrain.cli import main
from posttrain.cli.bridge import explained, options_of, parameter_types
from posttrain.cli.parts import parts_in, with_parts
from posttrain.loss import Total, loss_parts
from posttrain.policy.text import TextPolicy
from posttrain.systems.diversity import diversity
from posttrain.systems.entropy import clip_cov, kl_cov
from posttrain.systems.grpovi import varied
from posttrain.systems.mm_upt import majority
from posttrain.systems.noisy_rewards import calibrated, flipped, patterned
from posttrain.systems.q_rm.model import QModel, by_token

ROOT = Path(__file__).parent.parent
NAMES = [one.name for one in systems.every()]


@pytest.fixture
def briefly(monkeypatch, tmp_path):
    """Base models of tiny worlds after twenty steps, in a cache of the test's own."""
    plain = tiny.warm_start

    def warm_start(policy, demonstrations, steps, rows=8, rate=1e-3, watch=lambda step, loss: None):
        plain(policy, demonstrations, min(steps, 20), 8, rate, watch)

    monkeypatch.setattr(tiny, "warm_start", warm_start)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))


SIZE = {"steps": "1", "tasks": "2", "model": "{checkpoint}"}  # where a stage has the option and no line gives it


def smoke_runs() -> Iterator[Any]:
    """Every line of every system's `SMOKE`, as a test of its own."""
    for name in NAMES:
        for stage, line in systems.system(name).smoke.runs:
            yield pytest.param(name, stage, line, id=f"{name} {stage} {line}".strip())


def shrink(monkeypatch, found: systems.System) -> None:
    """Give the constants of the system the small values that its `SMOKE` names."""
    module = found.load()
    for place, value in found.smoke.constants.items():
        room, _, constant = place.rpartition(".")
        owner = importlib.import_module(f"{module.__name__}.{room}") if room else module
        assert hasattr(owner, constant), place
        monkeypatch.setattr(owner, constant, value)


@pytest.mark.parametrize(("name", "stage", "line"), smoke_runs())
def test_every_stage_runs(name, stage, line, briefly, tmp_path, monkeypatch, capsys, request):
    """As a user would type it. Braces in a line name a fixture: a checkpoint or a file."""
    found = systems.system(name)
    shrink(monkeypatch, found)
    words = shlex.split(line)
    size = {**SIZE, "steps": "2"} if stage == "laptop" else SIZE
    options = set(options_of(found.stages[stage]))
    words += [
        word
        for option, value in size.items()
        if option in options and f"--{option}" not in words
        for word in (f"--{option}", value)
    ]
    named = {field for word in words for _, field, _, _ in Formatter().parse(word) if field}
    values = {field: request.getfixturevalue(field) for field in named}
    out = tmp_path / "run"
    words = [word.format(**values) for word in words]
    main(["run", name, "--stage", stage, *words, "--out", str(out), *(["--quiet"] if "quiet" in options else [])])
    if "steps" in options:
        assert list((out / "model").rglob("*.safetensors"))
        assert pt.read_metrics(out)
        kept = json.loads((out / "run.json").read_text())["run"]
        assert str(kept["steps"]) == size["steps"]
        assert set(kept["settings"]) >= options - RUN, "the bridge keeps every option of the stage"
        assert str(out / "report.html") in capsys.readouterr().err
    else:
        assert list(out.iterdir())


RUN = {one.name for one in fields(pt.Run)}


@pytest.mark.parametrize("name", NAMES)
def test_every_system_declares_what_it_needs(name):
    found = systems.system(name)
    assert next(iter(found.stages)) == "laptop"
    assert len(found.stages) > 1, "a stage of full scale"
    stages = {stage for stage, _ in found.smoke.runs}
    assert "laptop" in stages
    assert stages <= set(found.stages)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_that_learns_takes_held_out_tasks_and_an_engine_or_says_why_not(name):
    for stage, function in systems.system(name).stages.items():
        options = set(options_of(function))
        if stage == "laptop" or "steps" not in options:
            continue
        assert "sampler" in options or function.one_process, (stage, "no engine")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, words) -> str:
    """A Llama checkpoint in the format of the Hub, with its tokenizer and template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> str:
    """What senders have, and what receivers are asked."""
    file = tmp_path_factory.mktemp("scenes") / "scenes.jsonl"
    rows = [
        {"elements": ["two", "three and four", "five"], "question": "two + two", "answer": "4", "snr": 10},
        {"elements": [{"text": "one"}, "six"], "questions": [{"question": "one", "answer": 1}] * 2, "summary": "seven"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    return str(file)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory, checkpoint) -> str:
    """A reward model in the format of the Hub, of the same tokenizer."""
    model = pt.reward_model(checkpoint)
    folder = tmp_path_factory.mktemp("judge")
    model.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def q_model(tmp_path_factory, checkpoint) -> str:
    """A Q-model that has learnt nothing, of the policy's tokenizer."""
    folder = tmp_path_factory.mktemp("q-model")
    QModel(pt.text(checkpoint, max_new=1), "scalar").save(folder)
    return str(folder)


@pytest.fixture
def questions(tmp_path) -> str:
    path = tmp_path / "questions.jsonl"
    lines = [{"prompt": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(6)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture
def table_questions(tmp_path) -> str:
    """A question of each kind about a small table."""
    path = tmp_path / "tables.jsonl"
    table = [["a", "b"], ["x", "1"], ["y", "2"]]
    lines = [
        {"question": "b of x?", "answers": ["1"], "table": table},
        {"statement": "b of y is 2", "label": 1, "header": table[0], "rows": table[1:]},
        {"question": "b of x?", "answer": "It is 1.", "table_array": table},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def existence_problems(tmp_path) -> str:
    """Questions with an answer and a theorem that says it exists."""
    path = tmp_path / "problems.jsonl"
    lines = [
        {"id": f"p{n}", "question": f"{n} + x = 9?", "answer": 9 - n, "statement": f"exists x : Z, {n} + x = 9"}
        for n in (2, 3)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def passages(tmp_path) -> str:
    path = tmp_path / "passages.jsonl"
    lines = [{"question": f"What is {n}+{n}?", "passage": f"{n}+{n} is {3 * n}."} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def ranked_answers(tmp_path) -> str:
    """Candidates whose ranking is known."""
    path = tmp_path / "candidates.jsonl"
    line = {"question": "Where?", "reference": "Here.", "responses": ["Here.", "There."], "alphas": [0, -1]}
    path.write_text("\n".join(json.dumps({**line, "id": str(n)}) for n in range(4)))
    return str(path)


@pytest.fixture
def judged_pairs(tmp_path) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"question": "Where?", "reference": "Here.", "answers": ["Here.", "There."]}))
    return str(path)


@pytest.fixture
def trials(tmp_path) -> str:
    """Questions about a trial with counts and with means, in the published columns."""
    path = tmp_path / "trials.jsonl"
    asked = {"outcome": "o", "intervention": "i", "comparator": "c", "text": "i 9 of 20, c 2 of 20"}
    counts = {"intervention_events": 9, "comparator_events": 2}
    means = {f"{arm}_{name}": 3 for arm in ("intervention", "comparator") for name in ("mean", "standard_deviation")}
    sizes = {"intervention_group_size": 20, "comparator_group_size": 20}
    lines = [
        asked | sizes | {"outcome_type": "binary"} | counts,
        asked | sizes | {"outcome_type": "continuous"} | means,
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def labelled_utterances(tmp_path) -> str:
    """Utterances of two tasks."""
    path = tmp_path / "utterances.jsonl"
    lines = [
        {"text": f"that is {word}", "label": label, "task": task}
        for task, labels in (("mood", ("good", "bad")), ("irony", ("yes", "no")))
        for word, label in zip("ab", labels, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def problems_with_tests(tmp_path) -> str:
    """Problems with unit tests: a program that reads and prints, and a function with a reference."""
    path = tmp_path / "problems.jsonl"
    lines = [
        {"task_description": "say it again", "test_cases": [{"input": "a", "output": "a"}]},
        {
            "task_description": "add",
            "fn_name": "add",
            "inputs": [[1, 2]],
            "outputs": [3],
            "reference": "def add(a, b): ...",
        },
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def recorded_steps(tmp_path) -> str:
    """Single steps of eight tasks in a browser."""
    path = tmp_path / "steps.jsonl"
    step = {"goal": "Fill it", "observation": "[12] textbox 'Owner'", "action": "fill('12', 'Ann')", "thought": "so"}
    path.write_text("\n".join(json.dumps({"instance": f"form/{i}", **step}) for i in range(8)))
    return str(path)


@pytest.fixture
def agent_pool(tmp_path, checkpoint) -> str:
    """Three agents of one model, one of them an adversary."""
    path = tmp_path / "agents.json"
    pool = [
        {"name": "solver", "role": "You solve it.", "model": checkpoint},
        {"name": "critic", "role": "You look for mistakes.", "model": checkpoint},
        {"name": "liar", "role": "You say what is wrong.", "model": checkpoint, "adversary": True},
    ]
    path.write_text(json.dumps(pool, indent=1))
    return str(path)


@pytest.fixture
def labelled_chains(tmp_path) -> str:
    """What a teacher has thought about them, with the right labels."""
    path = tmp_path / "chains.jsonl"
    lines = [
        {
            "task": task,
            "label": label,
            "prompt": f"Task: {task}. that is so",
            "response": f"<think>so</think><answer>{label}</answer>",
        }
        for task, label in (("mood", "good"), ("irony", "no"))
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture(scope="session")
def roomy_checkpoint(tmp_path_factory, checkpoint) -> str:
    """The same with room for long prompts."""
    policy = pt.text(checkpoint)
    policy.model.config.max_position_embeddings = 16384
    folder = tmp_path_factory.mktemp("roomy")
    policy.save(folder)
    return str(folder)


def folder_with_script(folder: Path) -> str:
    folder.mkdir()
    (folder / "train.py").write_text("print('metric: 1.0')\n")
    (folder / "task.json").write_text(json.dumps({"description": "Raise the metric.", "best": 3.0}))
    return str(folder)


@pytest.fixture
def script_folder(tmp_path) -> str:
    """A script that prints a metric, and what is wanted of it."""
    return folder_with_script(tmp_path / "toy")


@pytest.fixture
def other_script_folder(tmp_path) -> str:
    """Another, to be held out."""
    return folder_with_script(tmp_path / "other")


@pytest.fixture
def script_states(tmp_path) -> str:
    """States of an agent that improves it."""
    path = tmp_path / "states.jsonl"
    line = {"problem": "toy", "metric": 1.0, "changed": {}, "history": [], "steps": []}
    path.write_text(json.dumps(line) + "\n")
    return str(path)


@pytest.fixture
def script_traces(tmp_path) -> str:
    """What an expert has done there."""
    path = tmp_path / "traces.jsonl"
    prompt = [{"role": "user", "content": "Raise the metric."}]
    path.write_text(json.dumps({"prompt": prompt, "response": "Action: Execute Script"}) + "\n")
    return str(path)


@pytest.fixture
def theorems(tmp_path) -> str:
    """Rows in the columns of DeepTheorem's data."""
    path = tmp_path / "theorems.jsonl"
    lines = [
        {
            "id": i,
            "pos_question": f"Prove or disprove that {i}+{i} is even.",
            "pos_truth_value": True,
            "neg_question": f"Prove or disprove that {i}+{i} is odd.",
            "neg_truth_value": False,
            "proof": f"It is 2 times {i}.",
        }
        for i in range(4)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture
def variants(tmp_path) -> str:
    """A test file of theorems with variants, in Putnam's columns."""
    path = tmp_path / "variants.jsonl"
    lines = [
        {"problem_name": "p", "prompt": f"Prove or disprove that 1+1 {sign} 2.", "answer": sign == "="} for sign in "=<"
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture(scope="session")
def dna_encoder(tmp_path_factory) -> str:
    """An encoder over 6-mers in Nucleotide Transformer's first format."""
    return injection_checkpoints.esm(tmp_path_factory.mktemp("esm"), size=6)


@pytest.fixture(scope="session")
def dna_reader(tmp_path_factory, checkpoint, dna_encoder) -> str:
    """A language model that is shown DNA by it."""
    folder = tmp_path_factory.mktemp("reader")
    pt.inject(checkpoint, [pt.DnaEncoder(dna_encoder)]).save(folder)
    return str(folder)


@pytest.fixture
def kegg_rows(tmp_path) -> str:
    """Variants with traces, in the columns of wanglab/kegg."""
    path = tmp_path / "kegg.jsonl"
    lines = [
        {
            "question": f"Which disease, of gene {i % 2}?",
            "answer": ("als", "lissencephaly")[i % 2],
            "reasoning": "Step 1: it is so.",
            "reference_sequence": "ACGTAC" * 4 + "GT" * i,
            "variant_sequence": "ACGTAC" * 3 + "ACGAAC" + "GT" * i,
        }
        for i in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def dna_sequences(tmp_path) -> str:
    path = tmp_path / "sequences.fasta"
    path.write_text(">one\nACGTTGCA\nACG\n>two\nGGGTACCA\n")
    return str(path)


@pytest.fixture
def radio_slots(tmp_path) -> str:
    """Two users who share symbols, each with a picture."""
    path = tmp_path / "slots.jsonl"
    vision_checkpoints.png(tmp_path / "street.png", 20, 40)
    user = {"image": "street.png", "box": [10, 5, 20, 15], "priority": "high", "latency_ms": 30, "snr_db": 7.5}
    users = [{**user, "task": "find the car", "region": "object"}, {**user, "task": "watch it all", "region": "whole"}]
    path.write_text("\n".join(json.dumps({"id": str(i), "symbols": 24, "users": users}) for i in range(3)))
    return str(path)


@pytest.fixture
def picture_experts(tmp_path) -> str:
    """Encoders that have learnt nothing."""
    from posttrain.systems.casemcom.experts import Experts

    Experts(12, (4, 8), hidden=8).save(tmp_path / "experts")
    return str(tmp_path / "experts")


@pytest.fixture
def pairs(tmp_path) -> str:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": "bad " * (i + 1), "category": "ab"[i % 2]}
        for i in range(8)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory) -> str:
    return diffusion_checkpoints.stable_diffusion(tmp_path_factory.mktemp("stable-diffusion"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    return diffusion_checkpoints.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory) -> str:
    return vision_checkpoints.checkpoint(tmp_path_factory.mktemp("qwen2.5-vl"), "qwen2_5_vl")


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory) -> str:
    return vision_checkpoints.checkpoint(tmp_path_factory.mktemp("qwen2-vl"), "qwen2_vl")


@pytest.fixture(scope="session")
def pointed_checkpoint(tmp_path_factory, qwen2_vl) -> str:
    """A model that sees pictures, and is shown clouds of 256 points."""
    folder = tmp_path_factory.mktemp("pointed")
    pt.inject(qwen2_vl, [pt.PointEncoder()], max_new=8, device="cpu").save(folder)
    return str(folder)


@pytest.fixture
def described_solids(tmp_path) -> str:
    path = tmp_path / "solids.jsonl"
    rows = [
        {"id": f"x{size}", "description": f"A box of {size}.", "program": f"r=cq.Workplane().box(9,9,{size})"}
        for size in range(1, 7)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def program_samples(tmp_path) -> str:
    """What a supervised model has made of them."""
    path = tmp_path / "samples.jsonl"
    rows = [{"id": f"x{size}", "replies": ["r=1", "x"], "rewards": [1.0, -10.0]} for size in range(1, 7)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory) -> str:
    return vision_checkpoints.checkpoint(tmp_path_factory.mktemp("qwen3-vl"), "qwen3_vl")


@pytest.fixture
def drawings(tmp_path) -> str:
    path = tmp_path / "drawings.jsonl"
    for i in range(4):
        vision_checkpoints.png(tmp_path / f"{i}.png", 16, 8 * (i + 1), seed=i)
    lines = [{"prompt": "How wide?", "image": f"{i}.png", "answer": str(8 * (i + 1))} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def crowd_pictures(tmp_path) -> str:
    """Two pictures of persons, in COCO's form."""
    for i in range(2):
        vision_checkpoints.png(tmp_path / f"crowd{i}.png", 24, 40, seed=i)
    whole = {
        "images": [{"id": i, "file_name": f"crowd{i}.png"} for i in range(2)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [4, 4, 10, 16], "iscrowd": 0} for i in range(2)],
    }
    path = tmp_path / "crowd.json"
    path.write_text(json.dumps(whole))
    return str(path)


@pytest.fixture
def captioned_drawings(tmp_path) -> str:
    """Problems with marked pictures and captions."""
    path = tmp_path / "captioned.jsonl"
    for i in range(2):
        vision_checkpoints.png(tmp_path / f"marked-{i}.png", 16, 8 * (i + 1), seed=i)
    row = {"question": "<image>How wide?", "caption": "A strip."}
    lines = [row | {"image": [f"marked-{i}.png"], "answer": 8 * (i + 1)} for i in range(2)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def prompts(tmp_path) -> str:
    path = tmp_path / "prompts.json"
    path.write_text('["a cat washing dishes", "a dog riding a bike", "a ball on a ramp"]')
    return str(path)


def test_the_command_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    assert all(one.name in shown and one.first_line in shown for one in systems.every())
    with pytest.raises(SystemExit):
        main(["run", "entropy", "--help"])
    assert "--method {kl_cov,clip_cov,grpo,clip_higher,entropy_bonus}" in " ".join(capsys.readouterr().out.split())
    for arguments, message in (
        (["run", "entropi"], "did you mean entropy?"),
        (["run", "entropy", "--scale", "huge"], "--scale huge: unknown, the choices are laptop, full"),
        (["run", "entropy", "--stage", "trian"], "--stage trian: unknown, the choices are laptop, train; did you mean"),
        (["train", "--data", "x.jsonl", "--out", "r", "--with", "entropy.klcov"], "did you mean kl_cov?"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_a_laptop_stage_is_not_started_on_several_ranks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["run", "entropy"])
    assert "this runs in one process" in capsys.readouterr().err


def test_a_policy_that_cannot_be_sharded_is_refused_with_the_reason(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["run", "srrl", "--scale", "full", "--data", "prompts.json", "--sampler", "vllm"])
    assert "a diffusion model" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["run", "actlcd", "--scale", "full", "--data", "x.jsonl"])
    assert "a gate" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_option_of_a_system(name):
    for stage, function in systems.system(name).stages.items():
        prose, texts = explained(function)
        own = [option for option, kind in parameter_types(function).items() if not is_dataclass(kind)]
        assert [option for option in own if option not in texts] == [], stage
        assert not any(line.partition("  ")[2] for line in prose.splitlines()), "a text of an option that is not there"


@pytest.mark.parametrize("name", NAMES)
def test_every_system_has_its_page(name):
    page = (ROOT / "docs" / "systems" / f"{name}.md").read_text()
    for part in ("arXiv", f"posttrain run {name}", ".svg", "## What differs"):
        assert part in page, part
    assert name in (ROOT / "docs" / "claims.md").read_text()


# ---- composition: an idea of one paper with an idea of another

ADVANTAGES = {"normalised": normalised, "centred": centred, "leave one out": leave_one_out, "by decision": by_decision}
LOSSES = {
    "clipped": lambda: pt.clipped(),
    "kl_cov": lambda: kl_cov(0.3, 2.0),
    "clip_cov": lambda: clip_cov(0.3, 0.0),
    "likelihood": lambda: pt.likelihood,
}
PLAIN = pt.each(lambda rollout: sum(map(ord, rollout.text)) % 7 / 6)  # in [0, 1], and varies with any sample
REWARDS = {
    "plain": lambda policy: PLAIN,
    "varied": lambda policy: varied(PLAIN),
    "varied, policy's weights": lambda policy: varied(PLAIN, weights="policy", reference=policy),
    "flipped": lambda policy: flipped(PLAIN, 0.4),
    "calibrated": lambda policy: calibrated(PLAIN, patterned()),
    "majority": lambda policy: majority(lambda text: text[:1] or None),
    "by token": lambda policy: by_token(lambda group: [torch.linspace(0, 1, one.decisions) for one in group]),
    "varied of flipped": lambda policy: varied(flipped(PLAIN, 0.4)),
}
REGULARISERS = {
    "none": [],
    "diversity": [(0.5, diversity())],
    "diversity of all": [(0.5, diversity(False))],
    "entropy": [(0.01, pt.entropy_bonus)],
    "kl": [(0.04, pt.kl_to_reference())],
}


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_any_advantage_with_any_loss_reward_and_regulariser(make, advantage):
    """One step each of all 640 combinations: parameters change and stay finite. Its matrix stands in docs/systems.md."""
    policy = make(max_new=3)
    reference = policy.frozen_copy()
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    for loss, reward, more in product(LOSSES, REWARDS, REGULARISERS):
        policy.load_state_dict(start)
        recipe = pt.Recipe(
            REWARDS[reward](reference),
            advantage=ADVANTAGES[advantage],
            loss=pt.total((1.0, LOSSES[loss]()), *REGULARISERS[more]),
            samples=3,
            updates=2,
            reference=reference if more == "kl" else None,
        )
        source = pt.ShuffledSource([task("a"), task("b")])
        experience = pt.gather(policy, source, recipe, 2, seed=1)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        metrics = pt.update(
            policy, optimizer, experience.rows, recipe.loss, reference=recipe.reference, updates=recipe.updates
        )
        where = (advantage, loss, reward, more)
        assert all(torch.isfinite(value).all() for value in policy.state_dict().values()), where
        taught = any(one.advantage.any() for one in experience.rows)
        flat = not taught and more in ("none", "diversity", "kl")  # nothing to learn from, or not yet
        assert metrics["grad_norm"] > 0 or flat, where


def test_parts_join_by_name(make):
    recipe = pt.grpo(PLAIN, samples=3)
    made = with_parts(recipe, parts_in("entropy.kl_cov + diversity.positive, grpovi.varied"), tiny=True)
    assert made.updates >= 4
    assert made.samples == 3
    for one in systems.every():
        assert [name.partition(".")[2] for name in one.part_names] == list(one.parts), one.name
    for wrong, message in (("entropi.kl_cov", "did you mean entropy"), ("entropy.klcov", "did you mean kl_cov")):
        with pytest.raises(ValueError, match=message):
            with_parts(recipe, [wrong], tiny=True)


def test_a_part_that_would_throw_away_another_s_work_is_refused(tmp_path):
    plain = pt.grpo(PLAIN, samples=3)
    with pytest.raises(
        ValueError,
        match=r"replaces the reward that noisy_rewards.flipped_40 has changed: name mm_upt.majority before it",
    ):
        with_parts(plain, ["noisy_rewards.flipped_40", "mm_upt.majority"], tiny=True)
    both = with_parts(plain, ["mm_upt.majority", "noisy_rewards.flipped_40"], tiny=True)
    group = [said("7"), said("7"), said("8")]
    assert {score.parts["raw"] for score in both.reward(group)} == {0.0, 1.0}, "the majority's answer, then the flip"
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\nfrom functools import partial\n"
        "def bonus(reward, group):\n    return reward(group)\n"
        "PARTS = {\n    'broken': lambda plain, tiny: None,\n"
        "    'partly': lambda plain, tiny: replace(plain, reward=partial(bonus, plain.reward)),\n}\n"
    )
    with_parts(plain, ["noisy_rewards.flipped_40", f"{file}:partly"], tiny=True)  # it wraps the flips
    with pytest.raises(ValueError, match="it returned NoneType; a part returns a posttrain.Recipe"):
        with_parts(plain, [f"{file}:broken"], tiny=True)


def test_parts_that_replace_the_surrogate_leave_other_terms():
    plain = pt.grpo(pt.each(lambda rollout: 0.0), kl=0.1, reference=TextPolicy)
    divergence = plain.loss.terms[1][1]
    for names in (["rl_with_cold_start.dual_clip"], ["entropy.kl_cov"], ["diversity.positive", "entropy.clip_cov"]):
        found = list(loss_parts(with_parts(plain, names, tiny=True).loss))
        assert divergence in found
        assert plain.loss.terms[0][1] not in found
        assert sum(not isinstance(part, Total) for part in found) == 1 + len(names)


def test_combinations_are_trained_side_by_side(briefly, tmp_path, capsys):
    out = tmp_path / "comparison"
    arguments = ["compare", "grpo", "grpo + entropy.kl_cov + diversity.positive", "--out", str(out)]
    size = ["--steps", "2", "--tasks", "2", "--samples", "3", "--seeds", "2", "--quiet"]
    main([*arguments, *size])
    shown = capsys.readouterr().out
    assert "held out against the first" in shown
    assert "grpo + entropy.kl_cov + diversity.positive" in (out / "comparison.html").read_text()
    main([*arguments, *size])  # what has been run is read
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit):
        main([*arguments, *size, "--temperature", "0.5"])
    assert "was started with temperature = 1.0, not 0.5" in capsys.readouterr().err
    first = out / "grpo-0" / "run.json"
    before = json.loads(first.read_text())["started"]
    main([*arguments, *size, "--overwrite"])
    assert json.loads(first.read_text())["started"] != before


def test_training_takes_parts_of_systems(checkpoint, questions, tmp_path):
    out = tmp_path / "run"
    parts = ["--with", "entropy.kl_cov,diversity.positive"]
    options = ["--data", questions, "--model", checkpoint, "--max-new", "6", "--steps", "1", "--tasks", "2", *parts]
    main(["train", *options, "--out", str(out), "--quiet"])
    assert json.loads((out / "run.json").read_text())["run"]["settings"]["with_"] == "entropy.kl_cov,diversity.positive"
    assert "cov_share" in pt.read_metrics(out)[0]
