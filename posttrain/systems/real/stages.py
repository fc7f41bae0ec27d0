"""Learn references, reinforce, evaluate: on a checkpoint, and problems as they are published or of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import posttrain as pt
from posttrain.sandbox import Memo, sandbox
from posttrain.systems.real import recipe
from posttrain.systems.real.detectors import DETECTORS, detectors_of, executable
from posttrain.systems.real.measures import as_table, measures_of, verdicts
from posttrain.systems.real.problems import Problem, demonstrations, problems, task_of
from posttrain.systems.real.reward import DETECTOR_WEIGHT, Hybrid, evaluation
from posttrain.systems.real.reward import DETECTORS as PUBLISHED

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True)
class ProblemOptions:
    """Which problems."""

    data: tuple[str, ...]
    """Rows of SafeSQL, SecCodePLT or APPS+, or of your own with their columns: FILE, or NAME=FILE."""
    limit: int | None = None
    """Use only the first so many lines of each file."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def problems(self) -> list[Problem]:
        if not self.data:
            raise ValueError("`data`: there must be at least one file")
        files = pt.named_files(self.data, "data")
        return [
            replace(one, key=f"{name}/{one.key}") if len(files) > 1 else one
            for name, file in files.items()
            for one in problems(file, self.limit, self.split)
        ]

    def tests(self, held_out: Sequence[str]) -> dict[str, list[Problem]]:
        """The problems of held-out files, by name."""
        return {name: problems(file, split="test") for name, file in pt.named_files(held_out).items()}


@dataclass(frozen=True)
class HybridOptions:
    """The reward."""

    detectors: tuple[str, ...] = ()
    """Detectors in the place of the published ones: taint, taint-parameters, ruff, mypy; their mean counts."""
    detector_weight: float | None = None
    """Their share, the tests have the rest: 0.3 for SafeSQL (the paper's for 3B; 0.1 for 0.5B and 7B), else 0.5."""
    rho: float = 0.0
    """Share of SecCodePLT's safety cases in its tests."""
    cases: int = 5
    """Most test cases of a problem that a reply is tested with in training."""

    def __post_init__(self):
        pt.at_least(1, cases=self.cases)
        for name in ("detector_weight", "rho"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`{name}={value}`: it must be from 0 to 1")
        if "semgrep" in self.detectors:
            raise ValueError("`detectors=semgrep`: it is held out, to show when the others are gamed")

    def reward(self, box: Memo, found: Sequence[Problem]) -> Hybrid:
        """The reward of these kinds of problems. Raises ValueError for a detector that is not installed."""
        kinds: list[str] = list(dict.fromkeys(one.kind for one in found))
        weights = {
            kind: DETECTOR_WEIGHT[kind] if self.detector_weight is None else self.detector_weight for kind in kinds
        }
        chosen = {kind: detectors_of(self.detectors or PUBLISHED[kind]) if weights[kind] else {} for kind in kinds}
        return Hybrid(box, chosen, weights, self.rho)


def train(
    source: ProblemOptions,
    hybrid: HybridOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/real", steps=600, tasks=256, lr=1e-6),
    samples: int = 1,
    mini_batches: int = 1,
    kl: float = 0.001,
    entropy: float = 0.001,
    critic_lr: float = 1e-5,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """PPO on program analysis and unit tests; give `max_new=1024`, as published for APPS+.

    samples       of a problem
    mini_batches  optimizer steps of a batch; the paper takes 8 for SecCodePLT+
    kl            weight of the divergence from the starting model, in the reward; 0 loads no reference
    entropy       weight of the entropy
    critic_lr     learning rate of the critic
    held_out      problems that are only evaluated, by Function: FILE, or NAME=FILE
    """
    found, tests = source.problems(), source.tests(held_out)
    box = Memo(sandbox())  # not in a `with`: on a cluster a player's recipe outlives the stage that built it
    paid = hybrid.reward(box, found)
    policy = model.policy()
    made = recipe(
        paid,
        policy,
        samples=samples,
        kl=kl,
        entropy=entropy,
        critic_lr=critic_lr,
        updates=mini_batches,
        evaluation=evaluation(box),
    )
    tasks = [task_of(one.with_cases(hybrid.cases)) for one in found]
    sets = {name: [task_of(one) for one in some] for name, some in tests.items()}
    return scale.train(policy, tasks, made, run, held_out=sets)


def sft(
    source: ProblemOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/real-sft", steps=200, tasks=8, lr=1e-5),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """The paper's supervised baseline: the reference code (SecCodePLT's patched, else the column `reference`).

    held_out  problems whose references' loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    tests = {name: demonstrations(some) for name, some in source.tests(held_out).items()}
    return pt.sft(model.policy(), demonstrations(source.problems()), run, held_out=tests)


def evaluate(
    source: ProblemOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/real-evaluation"),
    samples: int = 1,
    detectors: tuple[str, ...] = (),
) -> Path:
    """Function, Quality and Func-Qual by detector, in OUT/measures.json; of each reply in OUT/verdicts.jsonl.

    SafeSQL's programs are attacked as well. Of all other detectors, those that are installed.

    samples    replies to a problem, each of which counts
    detectors  these alone
    """
    pt.at_least(1, samples=samples)
    found = source.problems()
    chosen = detectors_of(detectors or [name for name in DETECTORS if "taint" in name or executable(name)])
    policy, box = model.policy(), Memo(sandbox())
    with box.sandbox:
        replies, played = scale.evaluate(policy, [task_of(one) for one in found], evaluation(box), samples, output)
        if pt.ranks.is_primary():
            plain = HybridOptions(detector_weight=0.0).reward(box, found)
            rows = verdicts(box, plain, [(one.task.truth, one.text) for one, _ in played.graded], chosen)
            pt.Lines(replies.folder / VERDICTS, resume=False).replace(rows)
            measures = measures_of(rows)
            replies.write(measures)
            print("\n".join(as_table(measures)))
    return replies.folder


def laptop(
    detector_weight: float = 0.3,
    run: pt.Run = pt.Run("runs/real", steps=30, tasks=8, lr=1e-3),
) -> pt.Session:
    """Small database programs, really executed: people paste input into their queries, and an analysis finds it.

    detector_weight  share of the detector in the reward; the tests have the rest
    """
    from posttrain.lab.world.queries import Queries, python
    from posttrain.lab.world.words import base
    from posttrain.systems.real import lab

    if not 0 <= detector_weight <= 1:
        raise ValueError(f"`detector_weight={detector_weight}`: it must be from 0 to 1")
    world = Queries(run.seed)
    policy = base(world, run.seed, lab.TINY)
    with sandbox() as box:
        graded = evaluation(Memo(box), python)
        paid = lab.reward(Memo(box), detector_weight)
        made = recipe(
            paid, policy, samples=lab.SAMPLES, critic_lr=lab.CRITIC_RATE, updates=lab.UPDATES, evaluation=graded
        )
        return pt.train(policy, lab.training_tasks(world), made, run, held_out=lab.held_out_tasks(world))


STAGES = {"laptop": laptop, "train": train, "sft": sft, "evaluate": evaluate}
