"""RL-Wall on a laptop, and on a checkpoint and problems of the user's own: train with a sweep on either side, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain import ranks
from posttrain.cli.options import ModelOptions, ScaleOptions, TaskOptions, at_least
from posttrain.core import Reward, Sampler, Score, Task
from posttrain.evaluation import Evaluation, evaluate
from posttrain.lab.world.navigation import Navigation, is_right
from posttrain.lab.world.words import base
from posttrain.measure import RIGHT
from posttrain.reward import each
from posttrain.run.directory import read_json, write_json
from posttrain.run.folder import prepare_folder
from posttrain.run.lines import Lines
from posttrain.run.progress import progress_bar
from posttrain.run.session import Session
from posttrain.run.settings import Output, Run
from posttrain.seeding import mix
from posttrain.step import train
from posttrain.systems.rl_wall import TEMPERATURES, Sweep, recipe, sweep_temperatures
from posttrain.systems.rl_wall.judge import Assessment, assess, shares
from posttrain.systems.rl_wall.tree import write_trees

AT_ONCE = 32  # problems that are solved and judged together
TESTS, SAMPLES = 96, 32  # of the laptop's sweeps


@dataclass(frozen=True)
class Sweeps:
    """The sweeps of a run before and after it, kept in OUT/sweeps.json, with the trees of the one after it."""

    out: Path
    tests: Mapping[str, Sequence[Task]]  # sets by name; one alone has no name
    reward: Reward
    samples: int

    @property
    def file(self) -> Path:
        return self.out / "sweeps.json"

    def before(self, session: Session) -> None:
        """Sweep as a run starts. Once it has taken a step, what was found then stays."""
        if session.step == 0:
            session.synchronise_engine()
            self.record("before", self.sweep(session.engine or session.policy))

    def after(self, player: Sampler, tokenizer: Any) -> None:
        """Sweep the trained model, and print both."""
        sweeps = self.sweep(player)
        self.record("after", sweeps)
        if ranks.is_primary():
            for name, sweep in sweeps.items():
                write_trees(sweep.found[1.0], tokenizer, self.out / "trees" / name)
            self.show()

    def sweep(self, player: Sampler) -> dict[str, Sweep]:
        return {
            name: sweep_temperatures(player, tasks, self.reward, samples=self.samples)
            for name, tasks in self.tests.items()
        }

    def record(self, when: str, sweeps: Mapping[str, Sweep]) -> None:
        if ranks.is_primary():
            kept = read_json(self.file) if when == "after" and self.file.is_file() else {"samples": self.samples}
            found = {
                f"{name}/{key}" if name else key: value
                for name, sweep in sweeps.items()
                for key, value in sweep.measures.items()
            }
            write_json(self.file, {**kept, when: found})

    def show(self) -> None:
        kept = read_json(self.file)
        print(f"{'pass@1 at':>12}" + "".join(f"{t:>8g}" for t in TEMPERATURES) + f"{'coverage':>10}")
        for name in self.tests:
            place = f"{name}/" if name else ""
            for when in [when for when in ("before", "after") if when in kept]:
                found = {key.removeprefix(place): value for key, value in kept[when].items() if key.startswith(place)}
                row = "".join(f"{found[f'pass@1 at {t:g}']:8.3f}" for t in TEMPERATURES)
                print(f"{when:>12}{row}{found['coverage']:10.3f}{f'  {name}' if name else ''}")


def laptop(
    problems: int = 128,
    spurious: bool = True,
    run: Run = Run("runs/rl-wall", steps=100, tasks=16, lr=5e-4, max_norm=0.2),
) -> Session:
    """Walks: sweep the base model, train on so many problems, sweep again; solution trees of a few problems.

    problems  that it is trained on
    spurious  contexts depend on the action, a cue that is none
    """
    from posttrain.systems.rl_wall import lab

    world = Navigation(run.seed, beta=0.3 if spurious else 100.0)
    policy = base(world, run.seed, lab.TINY)
    tests, made = world.problems(TESTS, "test"), recipe(each(is_right), policy, epochs=2)
    sweeps = Sweeps(Path(run.out), {"": tests}, made.reward, SAMPLES)
    tasks = world.problems(problems, "train")
    session = train(policy, tasks, made, run, held_out=tests, on_start=sweeps.before)
    sweeps.after(policy, policy.tokenizer)
    return session


def learn(
    task: TaskOptions,
    model: ModelOptions,
    scale: ScaleOptions,
    held_out: tuple[str, ...],
    run: Run = Run("runs/rl-wall", steps=200, tasks=32, lr=1e-6),
    samples: int = 64,
) -> Session:
    """Your checkpoint on MATH, swept on held-out problems (MATH-500) before and after, 64 samples a problem.

    held_out  data of the problems of both sweeps: FILE, or NAME=FILE
    samples   of each of them, at every temperature
    """
    at_least(1, samples=samples)
    tests = task.tests(held_out)
    if not tests:
        raise ValueError("`held_out`: the sweeps need problems that are not trained on")
    policy, tasks = model.policy(), task.tasks()
    made = recipe(task.reward(), policy, epochs=1)
    sweeps = Sweeps(Path(run.out), tests, made.reward, samples)
    session = scale.train(policy, tasks, made, run, held_out=tests, on_start=sweeps.before)
    with nullcontext(policy) if scale.cluster else scale.playing(policy, run.out, tasks) as player:
        sweeps.after(player, policy.tokenizer)
    return session


def judge_solutions(
    task: TaskOptions,
    model: ModelOptions,
    scale: ScaleOptions,
    output: Output = Output("runs/rl-wall-judge"),
    judge: str = "self",
    samples: int = 1,
) -> Path:
    """Have plan, execution and answer of a model's solutions judged; write OUT/judged.jsonl and OUT/shares.json.

    judge    who is asked: a Hub id or folder, the address of a chat server, or self, the model
    samples  solutions of each problem
    """
    at_least(1, samples=samples)
    tasks, reward, policy = task.tasks(), task.reward(), model.policy()
    policy.check(tasks)
    other = None if judge == "self" else model.player(judge)
    out = Path(output.out)
    prepare_folder(
        out, "judge", ["judged.jsonl", "shares.json"], output.settings, resume=output.resume, overwrite=output.overwrite
    )
    lines = ranks.run_on_primary(lambda: Lines(out / "judged.jsonl", output.resume), "for the solutions so far")
    batches = [tasks[start : start + AT_ONCE] for start in range(0, len(tasks), AT_ONCE)]
    with scale.playing(policy, out, tasks) as player, progress_bar("batches", len(batches), output.quiet) as done:
        done(len(lines.found))
        for number in range(len(lines.found), len(batches)):
            found = evaluate(
                {"policy": player}, batches[number], reward, samples=samples, seed=mix(output.seed, number)
            )
            records = verdicts(other or player, found, mix(output.seed, "judge", number))
            ranks.run_on_primary(lambda: lines.add({"solutions": records}), "for the solutions to be written")  # noqa: B023
            done(1)
    if ranks.is_primary():
        solutions = [one for line in lines.found for one in line["solutions"]]
        said = [Assessment(one["plan"], one["execute"], one["verify"]) for one in solutions]
        measures = shares(said, [one["right"] for one in solutions])
        write_json(out / "shares.json", measures)
        for name, value in measures.items():
            print(f"{name:>12} {value:.3f}")
    return out


def verdicts(judge: Sampler, found: Evaluation, seed: int) -> list[dict[str, Any]]:
    """Of every solution that was graded: its task and text, whether it is right, and what the judge says of it."""
    pairs = [
        (rollout, score.value >= RIGHT)
        for group, scores in zip(found.groups, found.scores, strict=True)
        for rollout, score in zip(group, scores, strict=True)
        if isinstance(score, Score)
    ]
    return [
        {"task": rollout.task.key, "text": rollout.text, "right": truth, **asdict(said)}
        for (rollout, truth), said in zip(pairs, assess(judge, [rollout for rollout, _ in pairs], seed), strict=True)
    ]


STAGES = {"laptop": laptop, "train": learn, "judge": judge_solutions}
