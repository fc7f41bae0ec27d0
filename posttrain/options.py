"""Options that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.core import Reward, Sampler, Task
    from posttrain.policy.text import TextPolicy
    from posttrain.run import Run

GRADES = ("math", "exact", "choice", "contains", "json")


def one_of(value: str, known: tuple[str, ...] | list[str], option: str) -> str:
    """The value, or a ValueError that suggests the nearest one."""
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{option} {value}: unknown, the choices are {', '.join(known)}{hint}")


@contextmanager
def naming(usual: str, option: str) -> Iterator[None]:
    """Within, an error that names the `usual` option names this one."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(f"{usual} ", f"{option} ", 1)) from error


def hashed(data: str) -> dict[str, Any]:
    """The data's hash, for run.json; None for a dataset of the Hub."""
    from pathlib import Path

    from posttrain.directory import file_hash

    return {"data_sha256": file_hash(data) if Path(data).is_file() else None}


def own_settings(command: Any) -> dict[str, Any]:
    """The plain options of a command, without those of its option groups."""
    return {
        name: value for name, value in vars(command).items() if value is None or isinstance(value, str | int | float)
    }


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: str = "tiny"
    """Hub id, folder of a Hugging Face checkpoint, GGUF file, `smollm2` (SmolLM2-135M-Instruct), or `tiny`, a small one
    built here."""
    template: str | None = None
    """Chat template for a tokenizer without one: chatml, plain, or a Jinja file."""
    max_new: int = 256
    """Most tokens in a reply."""
    temperature: float = 1.0
    """Sampling temperature; the loss uses the same."""
    stop: str | None = None
    """A string that ends a reply, besides the end-of-turn token."""
    lora: int = 0
    """Rank of a LoRA adapter on every linear layer; 0 trains all parameters."""
    bf16: bool = False
    """Run the model in bfloat16; weights and optimizer stay float32."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here if not given."""
    threads: int | None = None
    """torch threads; one for models under 2 M parameters if not given."""
    min_pixels: int | None = None
    """Fewest pixels of a resized picture, for a model that sees; the checkpoint's, or the system's, if not given."""
    max_pixels: int | None = None
    """Most pixels of a resized picture: fewer take less memory."""

    def within(self, least: int | None, most: int) -> ModelOptions:
        """With a system's limits of pictures, where none are given and those that are leave room for them."""
        low, high = self.min_pixels, self.max_pixels
        if low is None and least is not None:
            low = least if high is None else min(least, high)
        if high is None:
            high = most if low is None else max(most, low)
        return replace(self, min_pixels=low, max_pixels=high)

    def policy(self) -> TextPolicy:
        from posttrain import ranks
        from posttrain.policy.load import fitting

        for name, least in (("max_new", 1), ("temperature", 0), ("lora", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be at least {least}")
        return fitting(
            self.model,
            max_new=self.max_new,
            temperature=self.temperature,
            stop=(self.stop,) if self.stop else (),
            template=self.template,
            lora=self.lora,
            bf16=self.bf16,
            checkpointing=self.checkpointing,
            device=self.device if ranks.world() == 1 else "cpu",  # laid over the ranks' devices later
            threads=self.threads,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def player(self, name: str, option: str, temperature: float | None = None) -> Sampler:
        """Another player (a judge, a teacher, an opponent), named by `option`.

        name  a Hub id or folder of a checkpoint, which is run here with a template of its own, or the address of a chat
              server; of several models that it has, http://host:8000/v1#MODEL is one
        Raises ServerError or ValueError, before any work, when there is none.
        """
        from posttrain.sampler.server import server

        warmth = self.temperature if temperature is None else temperature
        if not name.startswith("http"):
            own = replace(self, model=name, template=None, stop=None, lora=0, checkpointing=False, temperature=warmth)
            with naming("--model", option):
                return own.policy()
        found = server(name, max_new=self.max_new, temperature=warmth)
        _ = found.server.model
        return found


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks, and how their replies are graded."""

    data: str
    """JSONL, CSV or Parquet file, or a Hugging Face dataset id (id:configuration)."""
    prompt: str = "prompt"
    """Column of the prompt (text or chat messages), or a template such as "Solve: {question}"."""
    answer: str | None = "answer"
    """Column of the truth that the grader sees."""
    grade: str = "math"
    """math, exact, choice, contains, json, or file.py:function for a reward of your own."""
    image: str | None = None
    """Column of pictures: a path relative to the file, or several; <image> in the prompt says where each stands."""
    system: str | None = None
    """A system message put before every prompt."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def tasks(self, data: str | None = None, split: str | None = None) -> list[Task]:
        """The tasks of `--data`, or all of another file or dataset with the same columns."""
        from posttrain.data import read

        limit = None if data else self.limit
        where = {"split": split or self.split, "system": self.system, "image": self.image}
        return read(data or self.data, self.prompt, self.answer, limit=limit, **where)

    def held_out(self, data: str | None, split: str = "test") -> list[Task]:
        """The tasks of `--held-out`, with the same columns; none, if it was not given."""
        with naming("--data", "--held-out"):
            return self.tasks(data, split) if data else []

    def reward(self) -> Reward:
        from posttrain import grade

        if ":" in self.grade:
            return grade.reward_file(self.grade)
        return grade.GRADES[one_of(self.grade, GRADES, "--grade")]

    def describe(self) -> dict[str, Any]:
        from posttrain.directory import file_hash

        file = self.grade.rpartition(":")[0]
        return {**vars(self), **hashed(self.data), "grade_sha256": file_hash(file) if file else None}


@dataclass(frozen=True)
class RunOptions:
    """How long, how fast, and where to."""

    out: str
    """Run directory, made if it is not there."""
    steps: int = 100
    """Steps to take."""
    tasks: int = 16
    """Tasks (or demonstrations, or pairs) in a step."""
    lr: float | None = None
    """Learning rate. If not given: 3e-4 for models under 10 M parameters; above, 1e-6 (sft and reward models 1e-5), ten
    times that under LoRA."""
    warmup: int = 0
    """Steps over which the learning rate rises."""
    schedule: str = "constant"
    """constant, linear or cosine."""
    weight_decay: float = 0.0
    max_norm: float = 1.0
    """Largest norm of the gradient."""
    micro_tokens: int = 16384
    """Tokens in one forward and backward pass; memory, never the result."""
    seed: int = 0
    save_every: int | None = None
    """Steps between checkpoints; a twentieth of the run if not given."""
    keep: int = 2
    """Checkpoints kept."""
    eval_every: int = 0
    """Steps between evaluations on --held-out; before the first step and after the last if not given."""
    resume: bool = False
    """Continue the run in --out exactly where its last checkpoint left it."""
    overwrite: bool = False
    """Replace the run in --out."""
    track: str | None = None
    """Experiment trackers, separated by commas: tensorboard, wandb, trackio, mlflow."""
    quiet: bool = False

    def plan(self) -> dict[str, Any]:
        """The fields that `posttrain.Run` has too."""
        own = {name: value for name, value in vars(self).items() if name != "track"}
        return own | {"track": tuple(self.track.split(",")) if self.track else ()}

    def run(self, **settings: Any) -> Run:
        from posttrain.run import Run

        return Run(**self.plan(), settings=settings)


@dataclass(frozen=True)
class PlannedRunOptions(RunOptions):
    """How long, how fast, and where to; or only what would be done."""

    dry_run: bool = False
    """Print the plan (what is read, tokens, memory, steps) and stop."""

    def plan(self) -> dict[str, Any]:
        return {name: value for name, value in super().plan().items() if name != "dry_run"}


@dataclass(frozen=True)
class ScaleOptions:
    """Who samples and who learns, if it is not this process alone (docs/scale.md)."""

    sampler: str | None = None
    """vllm, or the address of a server that takes weights (http://host:8000/v1): it samples in the policy's place."""
    sampler_options: str | None = None
    """Options of `vllm serve`, such as tensor-parallel-size=4,gpu-memory-utilization=0.5."""
    sampler_folder: str | None = None
    """Where weights are handed to a server by address; on another machine, a disk that both see."""
    cluster: str | None = None
    """Learn and sample on a Ray cluster: local (one of this machine), auto, or ray://host:10001."""
    learners: int = 1
    """Learners on the cluster: the ranks over which the policy lies (FSDP2)."""
    samplers: int = 2
    """Samplers on the cluster: the policy itself, or a vLLM each with --sampler vllm."""
    at_once: int = 1
    """Groups that one of them samples side by side; more suits vLLM."""
    gpus: float = 0.0
    """GPUs that each learner and each sampler holds of the cluster."""
    staleness: int = 0
    """Steps by which the weights that sampled a group may be older than those that learn from it."""
    stale: str = "block"
    """What keeps the bound: block (the learner waits for old groups), drop (they are lost), interrupt (begun again)."""

    def check(self, model: str) -> None:
        """Raises ValueError for options that do not go together, or do not suit the model."""
        one_of(self.stale, ("block", "drop", "interrupt"), "--stale")
        for name in ("staleness", "stale", "learners", "samplers", "at_once", "gpus"):
            value = getattr(self, name)
            if not self.cluster and value != getattr(ScaleOptions, name):
                raise ValueError(f"--{name.replace('_', '-')} {value} needs --cluster: local, auto or ray://host:10001")
        if self.cluster and self.sampler not in (None, "vllm"):
            raise ValueError(f"--sampler {self.sampler}: on a cluster every sampler is the policy itself, or vllm")
        if self.sampler_options and self.sampler != "vllm":
            raise ValueError("--sampler-options are those of --sampler vllm")
        for name in ("learners", "samplers", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be at least 1")
        if self.sampler is not None:
            from posttrain.policy.load import located, sees

            if sees(located(model)):
                raise ValueError(f"--sampler {self.sampler}: a policy that sees pictures samples itself, leave it out")

    def engine_options(self) -> dict[str, Any]:
        """Raises ValueError for one without a value."""
        pairs = [pair.partition("=") for pair in (self.sampler_options or "").split(",") if pair]
        if bad := [name for name, sign, _ in pairs if not sign]:
            raise ValueError(f"--sampler-options: {bad[0]!r} has no value; write {bad[0]}=VALUE")
        return {name.strip().lstrip("-"): True if value == "true" else value for name, _, value in pairs}

    @contextmanager
    def engine(self, policy: TextPolicy, out: str) -> Iterator[Sampler | None]:
        """What samples in the policy's place, while the run goes on; None: the policy itself."""
        from pathlib import Path

        from posttrain import ranks

        if self.sampler is None:
            yield None
        elif self.sampler == "vllm":
            if ranks.world() > 1:
                raise ValueError("--sampler vllm with several ranks: start vLLM by itself and give its address")
            from posttrain.sampler.vllm import vllm

            with vllm(policy, options=self.engine_options(), log=Path(f"{Path(out)}.vllm.log")) as started:
                yield started
        else:
            from posttrain.sampler.engine import ServedEngine
            from posttrain.sampler.server import Server

            folder = Path(self.sampler_folder) if self.sampler_folder else None
            yield ServedEngine(Server(self.sampler), policy, folder, "bfloat16" if policy.bf16 else "float32")
