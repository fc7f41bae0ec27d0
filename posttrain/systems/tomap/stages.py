"""The stages besides training: propose, collect, predictor, evaluate. One that was stopped goes on with --resume."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.core import Env, Sampler, Task
from posttrain.directory import Directory, read_rollouts, write_json
from posttrain.evaluation import evaluate
from posttrain.lines import Lines
from posttrain.policy.text import TextPolicy
from posttrain.progress import bar
from posttrain.run import Run
from posttrain.seeding import mix
from posttrain.step import Played
from posttrain.systems.tomap.counterclaims import Topic, proposed, record, topics
from posttrain.systems.tomap.options import PredictorOptions
from posttrain.systems.tomap.predictor import Predictor, divided, embedder, examples, logged, majority
from posttrain.systems.tomap.reward import validated
from posttrain.systems.tomap.wording import English

AT_ONCE = 32  # topics for which counterclaims are proposed together


def roomy(policy: TextPolicy, tasks: Sequence[Task[Topic]], turns: int, most: int) -> None:
    """Raises ValueError when the longest dialogue would not fit the model's context, before any work."""
    rounds = 2 * (turns - 1) * most
    for task in tasks:
        length = len(policy.chat.prompt(task.prompt)[0]) + rounds + policy.sampling.max_new
        if length > policy.context:
            raise ValueError(
                f"topic {task.key!r}: the last of {turns} turns may take {length} tokens, but the model has "
                f"{policy.context} positions: lower --turns, --most or --max-new, or take a model with a longer context"
            )


# ---- before training


def propose(policy: TextPolicy, found: Sequence[Topic], run: Run) -> Path:
    """`run.out`/topics.jsonl: the topics with ten counterclaims each, by the persuader itself; written as it goes."""
    path = Path(run.out) / "topics.jsonl"
    Directory(path.parent).prepare({"kind": "propose", "run": run}, run)
    lines = Lines(path, run.resume)
    with bar("topics", len(found), run.quiet) as done:
        done(len(lines.found))
        for start in range(len(lines.found), len(found), AT_ONCE):
            some = found[start : start + AT_ONCE]
            lines.add(*map(record, proposed(policy, some, seed=run.seed)))
            done(len(some))
    counts = [len(one.counterclaims) for one in topics(path)]
    print(
        f"{path}: {len(counts)} topics, {statistics.fmean(counts):.1f} counterclaims each, {counts.count(0)} topics "
        "without any"
    )
    return path


def collect(
    policy: TextPolicy, tasks: Sequence[Task[Topic]], env: Env, others: Mapping[str, Sampler], run: Run
) -> Path:
    """A run directory in which nothing is learned: its rollouts are what a predictor learns from.

    `run.steps` times `run.tasks` dialogues, topics in turn; one that could not be played is left out by the predictor.
    """
    turn = itertools.cycle(tasks)
    batches = [[next(turn) for _ in range(run.tasks)] for _ in range(run.steps)]
    path = talked(policy, batches, env, others, run, "collect")
    print(f"{run.out}: {run.steps * run.tasks} dialogues")
    return path


def talked(
    policy: TextPolicy,
    batches: Sequence[Sequence[Task[Topic]]],
    env: Env,
    others: Mapping[str, Sampler],
    run: Run,
    kind: str,
) -> Path:
    """A run directory with the dialogues of every batch, as rollouts of a step; those that are there stay."""
    directory = Directory(Path(run.out))
    directory.prepare({"kind": kind, "run": run}, run)
    with bar("dialogues", sum(map(len, batches)), run.quiet) as done:
        for step, some in enumerate(batches):
            if any(read_rollouts(run.out, step)):
                done(len(some))
                continue
            seed = mix(run.seed, kind, step)
            found = evaluate({"policy": policy, **others}, some, validated(), env, seed=seed, watch=done)
            played = [
                Played(rollout, score, None)
                for group, scores in zip(found.groups, found.scores, strict=True)
                for rollout, score in zip(group, scores, strict=True)
            ]
            directory.write_rollouts(step, policy, played)
    return directory.path


def teach(given: PredictorOptions, run: Run, device: str | None = None) -> dict[str, float]:
    """A predictor from the dialogues of some runs, saved in `run.out`; its accuracy on dialogues left aside."""
    found = examples(logged([part.strip() for part in given.logs.split(",") if part.strip()]), English())
    learnt, tested = divided(found, given.share, run.seed)
    predictor = Predictor(embedder(given.encoder, device), seed=run.seed)
    Directory(Path(run.out)).prepare({"kind": "predictor", "run": run}, run)
    predictor.learn(learnt, seed=run.seed)
    measures = {
        "accuracy": predictor.accuracy(tested),
        "majority": majority(tested),
        "examples": float(len(learnt)),
    }
    predictor.save(Path(run.out), **measures)
    print(
        f"{run.out}: accuracy {measures['accuracy']:.3f} on {len(tested)} attitudes, always the commonest "
        f"{measures['majority']:.3f}"
    )
    return measures


# ---- after it


def judged(
    policy: TextPolicy, tasks: Sequence[Task[Topic]], env: Env, others: Mapping[str, Sampler], run: Run
) -> dict[str, float]:
    """Means over a dialogue of each topic, written to `run.out`/evaluation.json beside the dialogues themselves."""
    batches = [tasks[start : start + run.tasks] for start in range(0, len(tasks), run.tasks)]
    path = talked(policy, batches, env, others, run, "evaluate")
    records = list(read_rollouts(path))
    marks = [one["parts"] for one in records if one["reward"] is not None]
    measures = {name: statistics.fmean(parts[name] for parts in marks) for name in marks[0]}
    measures |= {"dialogues": float(len(marks)), "invalid": float(len(records) - len(marks))}
    write_json(path / "evaluation.json", measures)
    for name, value in measures.items():
        print(f"{name:>12} {value:8.3f}")
    return measures
