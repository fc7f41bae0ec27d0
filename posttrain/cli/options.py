"""Options that several commands and stages share: groups of arguments that make a policy, tasks, or an engine."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Suppress

from posttrain.run.settings import Run

if TYPE_CHECKING:
    from posttrain.core import Env, Reward, Sampler, Task
    from posttrain.policy.text import TextPolicy
    from posttrain.recipe import Recipe
    from posttrain.run.session import HeldOut, Session
    from posttrain.scale.asynchronous import Players
    from posttrain.stream import Source


def check_choice(value: str, known: Iterable[str], argument: str) -> str:
    """The value, or a ValueError that suggests the nearest one."""
    choices = list(known)
    if value in choices:
        return value
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"`{argument}={value}`: unknown, the choices are {', '.join(choices)}{hint}")


def at_least(least: float, /, **arguments: float | None) -> None:
    """Raises ValueError naming the first argument that is less."""
    for name, value in arguments.items():
        if value is not None and not value >= least:
            raise ValueError(f"`{name}={value}`: it must be at least {least}")


def named_files(entries: Iterable[str]) -> dict[str, str]:
    """The files of a repeatable argument by name: `math=math500.jsonl`, or a file by its stem; one alone has no name.

    Raises ValueError for a name that comes twice.
    """
    given, found = list(entries), dict[str, str]()
    for entry in given:
        name, sign, file = entry.partition("=")
        if not sign or "/" in name:
            name, file = "" if len(given) == 1 else Path(entry).stem, entry
        if name in found:
            raise ValueError(f"`held_out={entry}`: there are two sets named {name}; name them: NAME=FILE")
        found[name] = file
    return found


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
    weights: Annotated[bool, Suppress] = True
    """Load the weights; without them the model can be planned and not run."""

    def with_pixel_limits(self, least: int | None, most: int) -> ModelOptions:
        """With these limits on the pixels of pictures, except where limits were given."""
        low, high = self.min_pixels, self.max_pixels
        if low is None and least is not None:
            low = least if high is None else min(least, high)
        if high is None:
            high = most if low is None else max(most, low)
        return replace(self, min_pixels=low, max_pixels=high)

    def policy(self) -> TextPolicy:
        """The trainable policy; without `weights` it can be planned and not run."""
        from posttrain import ranks
        from posttrain.policy.load import load_policy

        at_least(1, max_new=self.max_new, threads=self.threads)
        at_least(0, temperature=self.temperature, lora=self.lora)
        return load_policy(
            self.model,
            max_new=self.max_new,
            temperature=self.temperature,
            stop=(self.stop,) if self.stop else (),
            template=self.template,
            lora=self.lora,
            bf16=self.bf16,
            checkpointing=self.checkpointing,
            device=self.device if ranks.world() == 1 else "cpu",  # sharded over the ranks' devices later
            threads=self.threads,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            weights=self.weights,
        )

    def player(self, name: str, temperature: float | None = None) -> Sampler:
        """Another player: a judge, a teacher, an opponent.

        name  a Hub id or folder of a checkpoint, which runs in this process with a template of its own, or the address
              of a chat server; of a server's several models, http://host:8000/v1#MODEL is one
        Raises ServerError or ValueError, before any work, when it cannot be reached or loaded.
        """
        from posttrain.sampler.server import server

        own = self.temperature if temperature is None else temperature
        if not name.startswith("http"):
            return replace(
                self, model=name, template=None, stop=None, lora=0, checkpointing=False, temperature=own
            ).policy()
        found = server(name, max_new=self.max_new, temperature=own)
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
        """The tasks of `data`, or all of another file or dataset with the same columns."""
        from posttrain.data import read

        limit = None if data else self.limit
        where = {"split": split or self.split, "system": self.system, "image": self.image}
        return read(data or self.data, self.prompt, self.answer, limit=limit, **where)

    def tests(self, held_out: Iterable[str], split: str = "test") -> dict[str, list[Task]]:
        """The tasks of held-out files with the same columns, by name."""
        return {name: self.tasks(file, split) for name, file in named_files(held_out).items()}

    def reward(self) -> Reward:
        from posttrain import grade

        if ":" in self.grade:
            return grade.reward_file(self.grade)
        return grade.GRADES[check_choice(self.grade, grade.GRADES, "grade")]

    def env(self, env: str | None) -> Env:
        """The environment of the user's own file; a single turn if none is named."""
        from posttrain.episode import single_turn
        from posttrain.user_code import function_in

        return function_in(env, "env") if env else single_turn


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
    """Learners on the cluster: the ranks over which the policy is sharded (FSDP2)."""
    samplers: int = 2
    """Samplers on the cluster: the policy itself, or a vLLM each with sampler vllm."""
    at_once: int = 1
    """Groups that one of them samples side by side; more suits vLLM."""
    gpus: float = 0.0
    """GPUs that each learner and each sampler holds of the cluster."""
    staleness: int = 0
    """Steps by which the weights that sampled a group may be older than those that learn from it."""
    stale: str = "block"
    """What keeps the bound: block (the learner waits for old groups), drop (they are lost), interrupt (begun again)."""

    def check(self, model: str | None) -> None:
        """Raises ValueError for options that do not go together, or do not suit the model."""
        check_choice(self.stale, ("block", "drop", "interrupt"), "stale")
        for name in ("staleness", "stale", "learners", "samplers", "at_once", "gpus"):
            value = getattr(self, name)
            if not self.cluster and value != getattr(ScaleOptions, name):
                raise ValueError(f"`{name}={value}` needs `cluster`: local, auto or ray://host:10001")
        if self.cluster and self.sampler not in (None, "vllm"):
            raise ValueError(f"`sampler={self.sampler}`: on a cluster every sampler is the policy itself, or vllm")
        if self.sampler_options and self.sampler != "vllm":
            raise ValueError("`sampler_options` are those of `sampler=vllm`")
        at_least(1, learners=self.learners, samplers=self.samplers, at_once=self.at_once)
        if self.sampler is not None and model is not None:
            from posttrain.policy.load import checkpoint_path, sees_pictures

            if sees_pictures(checkpoint_path(model)):
                raise ValueError(f"`sampler={self.sampler}`: a policy that sees pictures samples itself, leave it out")

    def engine_options(self) -> dict[str, Any]:
        """Raises ValueError for one without a value."""
        pairs = [pair.partition("=") for pair in (self.sampler_options or "").split(",") if pair]
        if bad := [name for name, sign, _ in pairs if not sign]:
            raise ValueError(f"`sampler_options`: {bad[0]!r} has no value; write {bad[0]}=VALUE")
        return {name.strip().lstrip("-"): True if value == "true" else value for name, _, value in pairs}

    def players(self) -> Players:
        """Who plays on the cluster."""
        from posttrain.scale.asynchronous import Players

        return Players(
            self.samplers,
            self.sampler or "policy",
            tuple(self.engine_options().items()),
            self.at_once,
            gpus=self.gpus,
            staleness=self.staleness,
            rule=self.stale,  # type: ignore[arg-type]  (checked)
        )

    @contextmanager
    def engine(self, policy: TextPolicy, out: str | Path) -> Iterator[Sampler | None]:
        """What samples in the policy's place until the block ends; None: the policy itself."""
        from posttrain import ranks

        if self.sampler is None:
            yield None
        elif self.sampler == "vllm":
            if ranks.world() > 1:
                raise ValueError("`sampler=vllm` with several ranks: start vLLM by itself and give its address")
            from posttrain.sampler.vllm import vllm

            with vllm(policy, options=self.engine_options(), log=Path(f"{Path(out)}.vllm.log")) as started:
                yield started
        else:
            from posttrain.sampler.engine import ServedEngine
            from posttrain.sampler.server import Server

            folder = Path(self.sampler_folder) if self.sampler_folder else None
            yield ServedEngine(Server(self.sampler), policy, folder, "bfloat16" if policy.bf16 else "float32")

    @contextmanager
    def playing(self, policy: TextPolicy, out: str | Path, tasks: Iterable[Task] = ()) -> Iterator[Sampler]:
        """For work that samples and does not learn: the policy, or the engine with the policy's weights."""
        from posttrain import ranks
        from posttrain.sampler.weights import Engine, collect_weights, probe_of, synchronise

        with self.engine(policy, out) as sampler:
            if isinstance(sampler, Engine):
                weights = collect_weights(policy, probe_of(policy, list(tasks)), sampler.merged)
                ranks.run_on_primary(lambda: synchronise(sampler, weights), "for the engine to take the weights")
            yield sampler or policy

    def train(
        self,
        policy: TextPolicy,
        tasks: list[Task] | Source,
        recipe: Recipe,
        run: Run,
        *,
        held_out: HeldOut = (),
        on_start: Callable[[Session], None] = lambda session: None,
    ) -> Session:
        """`posttrain.train`, sampling and learning wherever these options say."""
        from functools import partial

        from posttrain.scale.asynchronous import train_with_players
        from posttrain.scale.place import build, place
        from posttrain.step import train

        if run.eval_every and not held_out:
            raise ValueError(f"`eval_every={run.eval_every}` needs tasks to evaluate: give `held_out`")
        options: dict[str, Any] = {"held_out": held_out, "on_start": on_start}
        if run.dry_run or place.building:
            return train(policy, tasks, recipe, run, **options)
        if place.program is not None:
            builder, players = partial(build, place.program), self.players()
            return train_with_players(policy, tasks, recipe, run, builder, players, stopped=place.stopped, **options)
        with self.engine(policy, run.out) as sampler:
            return train(policy, tasks, recipe, run, sampler=sampler, **options)


def player_name(name: str | None) -> str | None:
    """As settings hold a player: of a server only the model, as its address may change between a run and its resume."""
    return f"server#{name.partition('#')[2]}" if name and name.startswith("http") else name
