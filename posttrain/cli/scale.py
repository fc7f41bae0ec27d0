"""The options of who samples and who learns, and how a stage trains or plays there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.cli.options import at_least, check_choice
from posttrain.run.settings import Output, Run

if TYPE_CHECKING:
    from posttrain.cli.options import ModelOptions
    from posttrain.core import Env, Group, Invalid, Reward, Sampler, Task
    from posttrain.evaluation import Evaluation
    from posttrain.policy.text import TextPolicy
    from posttrain.recipe import Recipe
    from posttrain.run.replies import Replies
    from posttrain.run.session import HeldOut, Session
    from posttrain.scale.asynchronous import Players
    from posttrain.stream import Source

REPLIES, TRACES = "replies.jsonl", "traces.jsonl"


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
            from posttrain.policy.pretrained import checkpoint_path, has_encoders, sees_pictures

            path = checkpoint_path(model)
            if has_encoders(path) or sees_pictures(path):
                shown = "is shown more than text" if has_encoders(path) else "sees pictures"
                raise ValueError(f"`sampler={self.sampler}`: a policy that {shown} samples itself, leave it out")

    def refuse_sampler(self) -> None:
        """Raises ValueError for a sampler, where a stage only learns."""
        if self.sampler is not None:
            raise ValueError(f"`sampler={self.sampler}`: nothing is sampled here, leave it out")

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

    @contextmanager
    def asking(
        self,
        teacher: str | None,
        model: ModelOptions,
        policy: TextPolicy | None,
        out: str | Path,
        tasks: Sequence[Task],
    ) -> Iterator[Sampler]:
        """For work that a teacher does: the one that is named, or the policy, sampled wherever these options say.

        A policy whose teacher is another needs no weights, or may be None.
        """
        from posttrain.scale.place import distribute

        if teacher:
            if self.sampler:
                raise ValueError(f"`sampler={self.sampler}` samples for the model, and `teacher` is asked in its place")
            yield model.player(teacher)
            return
        policy = policy or model.policy()
        policy.check(tasks)
        distribute(policy)
        with self.playing(policy, out, tasks) as player:
            yield player

    def distil(
        self,
        teacher: str | None,
        model: ModelOptions,
        policy: TextPolicy,
        tasks: Sequence[Task],
        line: Callable[[Group], Mapping[str, Any] | Invalid],
        samples: int,
        output: Output,
        files: Sequence[str] = (TRACES,),
    ) -> list[dict[str, Any]]:
        """Ask a teacher, and write what is kept of its replies, for supervised learning, to the first of these files.

        line   of a task's replies (`posttrain.first_kept`)
        files  that the work writes, besides replies.jsonl, which has all that was said
        Raises ValueError when nothing is kept.
        """
        from posttrain import ranks
        from posttrain.collection import collect, kept_lines
        from posttrain.run.folder import prepare_folder
        from posttrain.run.lines import Lines
        from posttrain.seeding import mix

        out, settings = Path(output.out), {"seed": output.seed, **output.settings}
        with self.asking(teacher, model, policy, out, tasks) as player:
            prepare_folder(out, "traces", [REPLIES, *files], settings, resume=output.resume, overwrite=output.overwrite)
            seed = mix(output.seed, "teacher")
            lines = collect(player, tasks, line, out / REPLIES, samples=samples, seed=seed, quiet=output.quiet)
        kept = kept_lines(lines)
        if not kept:
            raise ValueError(
                f"not one reply to {len(tasks)} questions was right and in form: give a stronger `teacher`; "
                f"{out / REPLIES} has what was said"
            )
        ranks.run_on_primary(lambda: Lines(out / files[0]).replace(kept), "for the traces")
        if ranks.is_primary():
            print(f"{out / files[0]}: {len(kept)} traces of {len(tasks)} questions")
        return kept

    def evaluate(
        self,
        policy: TextPolicy,
        tasks: Sequence[Task],
        reward: Reward,
        samples: int,
        output: Output,
        env: Env | None = None,
        others: Mapping[str, Sampler] | None = None,
    ) -> tuple[Replies, Evaluation]:
        """The graded replies of all tasks, kept in OUT/replies.jsonl as they come, and resumed from there.

        env, others  what is played, a single turn if not given, and its players besides the policy
        What could not be answered is left out, and counted in a line on the screen.
        """
        from posttrain import ranks
        from posttrain.episode import single_turn
        from posttrain.run.replies import Replies
        from posttrain.scale.place import distribute

        policy.check(tasks)
        kept = Replies(output)
        distribute(policy)
        with self.playing(policy, output.out, tasks) as player:
            found = kept.grade({"policy": player, **(others or {})}, tasks, reward, env or single_turn, samples)
        if found.invalid and ranks.is_primary():
            print(f"{found.invalid} of {len(tasks) * samples} replies could not be had, and are left out")
        return kept, found

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
            builder, players = partial(build, place.program, place.phase), self.players()
            return train_with_players(policy, tasks, recipe, run, builder, players, stopped=place.stopped, **options)
        with self.engine(policy, run.out) as sampler:
            return train(policy, tasks, recipe, run, sampler=sampler, **options)
