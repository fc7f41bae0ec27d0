"""The commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from posttrain.cli.compare import Compare
from posttrain.cli.finish import finish, spread_if_several
from posttrain.cli.scale import Schedule, Serve
from posttrain.cli.train import Train
from posttrain.options import ModelOptions, PlannedRunOptions, TaskOptions, hashed, one_of, own_settings

if TYPE_CHECKING:
    from posttrain.data import Pair
    from posttrain.policy.text import TextPolicy
    from posttrain.policy.value import RewardModel
    from posttrain.run import Run

PAIR_LOSSES = ("dpo", "cdpo", "ipo", "simpo", "kto", "orpo", "reward-model")


@dataclass(frozen=True)
class Evaluate:
    """Grade samples of a model: mean reward, pass@k, majority@k, with 95 % intervals."""

    task: TaskOptions
    model_options: ModelOptions = ModelOptions()
    samples: int = 1
    """Samples per task."""
    k: str = "1"
    """The k of pass@k and majority@k, separated by commas."""
    greedy: bool = False
    """Also answer every task greedily, and report Potential@k."""
    seed: int = 0
    out: str | None = None
    """Write the numbers, and every rollout's score, as JSON."""

    def run(self) -> None:
        from posttrain.evaluation import evaluated_with_bar
        from posttrain.report import evaluation_table, evaluation_values

        ks = [int(k) for k in self.k.split(",")]
        if max(ks) > self.samples:
            raise ValueError(f"--k {self.k}: pass@{max(ks)} needs at least --samples {max(ks)}, not {self.samples}")
        if self.out:
            Path(self.out).parent.mkdir(parents=True, exist_ok=True)
        tasks, reward, policy = self.task.tasks(), self.task.reward(), self.model_options.policy()
        policy.check(tasks)
        found = evaluated_with_bar(policy, tasks, reward, self.samples, self.seed)
        greedy = None
        if self.greedy:
            from dataclasses import replace

            policy.sampling = replace(policy.sampling, temperature=0.0)
            greedy = evaluated_with_bar(policy, tasks, reward, 1, self.seed)
        values = evaluation_values(found, ks, greedy)
        evaluation_table(values, f"{self.model_options.model} on {self.task.data}")
        if self.out:
            from posttrain.directory import write_json

            keys = [task.key for task in tasks]
            write_json(Path(self.out), {"measures": values, "rewards": dict(zip(keys, found.values, strict=True))})


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: learn the replies of demonstrations (loss on replies only)."""

    data: str
    """JSONL, CSV or Parquet file, or a Hugging Face dataset id."""
    run_options: PlannedRunOptions
    model_options: ModelOptions = ModelOptions()
    prompt: str = "prompt"
    """Column of the prompt, a template with {columns}, or a column of chat messages with the replies in it."""
    response: str = "response"
    """Column of the reply."""
    image: str | None = None
    """Column of pictures: a path relative to the file, or several; <image> in the prompt says where each stands."""
    system: str | None = None
    limit: int | None = None

    def run(self) -> None:
        from posttrain.data import read_demonstrations
        from posttrain.ranks import joined
        from posttrain.supervised import sft

        demonstrations = read_demonstrations(
            self.data, self.prompt, self.response, image=self.image, system=self.system, limit=self.limit
        )
        run = self.run_options.run(**own_settings(self), **hashed(self.data), **vars(self.model_options))
        if self.run_options.dry_run:
            from posttrain.plan import plan_of
            from posttrain.run import Session

            plan_of(Session(run, self.model_options.policy(weights=False), demonstrations, kind="sft")).show()
            return
        with joined(self.model_options.device):
            policy = self.model_options.policy()
            spread_if_several(policy)
            finish(sft(policy, demonstrations, run).directory.path)


@dataclass(frozen=True)
class Prefer:
    """Learn from preference pairs: DPO and its family, or a Bradley-Terry reward model."""

    data: str
    """JSONL, CSV or Parquet file, or a Hugging Face dataset id, with prompt, chosen and rejected (text or chat)."""
    run_options: PlannedRunOptions
    model_options: ModelOptions = ModelOptions()
    loss: str = "dpo"
    """dpo, cdpo, ipo, simpo, kto, orpo, or reward-model."""
    beta: float | None = None
    """The loss's beta (orpo: its weight); its published value if not given."""
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: str | None = None
    limit: int | None = None

    def run(self) -> None:
        from posttrain.data import read_pairs

        one_of(self.loss, PAIR_LOSSES, "--loss")
        pairs = read_pairs(self.data, self.prompt, self.chosen, self.rejected, system=self.system, limit=self.limit)
        run = self.run_options.run(**own_settings(self), **hashed(self.data), **vars(self.model_options))
        if self.run_options.dry_run:
            self.plan(pairs, run)
        elif self.loss == "reward-model":
            from posttrain.reward_training import train_reward_model

            finish(train_reward_model(self.reward_model(), pairs, run).directory.path)
        else:
            from posttrain import preference

            policy = self.model_options.policy()
            make: Any = preference.PAIR_LOSSES[self.loss]
            name = "weight" if self.loss == "orpo" else "beta"
            loss = make(**{name: self.beta}) if self.beta is not None else make()
            finish(preference.prefer(policy, pairs, loss, run, reference=self.reference(policy)).directory.path)

    def reward_model(self, weights: bool = True) -> RewardModel:
        """Raises ValueError for an option that a reward model does not take."""
        from posttrain.policy.value import reward_model

        options = self.model_options
        unused = [name for name in ("lora", "bf16", "checkpointing") if getattr(options, name)]
        if unused or self.beta is not None:
            raise ValueError(f"--loss reward-model does not take --{(unused or ['beta'])[0]}: leave it out")
        return reward_model(
            options.model, template=options.template, device=options.device, threads=options.threads, weights=weights
        )

    def reference(self, policy: TextPolicy) -> TextPolicy | None:
        """What the loss compares with, if it compares."""
        from posttrain.preference import WITH_REFERENCE

        return policy.frozen() if self.loss in WITH_REFERENCE else None

    def plan(self, pairs: list[Pair], run: Run) -> None:
        """Print what a run would do, from the model's configuration and tokenizer alone."""
        from posttrain.plan import plan_of
        from posttrain.run import Session

        if self.loss == "reward-model":
            model: Any = self.reward_model(weights=False)
            plan_of(Session(run, model, pairs, kind="reward-model")).show()
        else:
            policy = self.model_options.policy(weights=False)
            plan_of(Session(run, policy, pairs, kind="prefer", reference=self.reference(policy))).show()


@dataclass(frozen=True)
class Show:
    """Summarise a run in the terminal and write its report.html."""

    path: Annotated[str, tyro.conf.Positional]
    """The run directory."""

    def run(self) -> None:
        from posttrain.report import summary, write_report

        summary(Path(self.path))
        print(f"report: {write_report(Path(self.path))}")


@dataclass(frozen=True)
class Published:  # for the list of commands: its options are those of the system that is named, see `posttrain.cli.run`
    """Run a published system, at laptop scale or on your own checkpoint and data: posttrain run SYSTEM --help."""


@dataclass(frozen=True)
class Claims:
    """Run systems' claims against their baselines, and print a table with verdicts.

    Arms run in parallel, one process a core; an interrupted run continues where it was.
    """

    systems: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Systems of `posttrain list`; all of them if none is named."""
    seeds: int = 5
    quick: bool = False
    """One seed at reduced size: a smoke test, whose verdicts mean nothing."""
    workers: int = 0
    """Processes at a time; as many as there are cores if 0."""
    out: str = "runs/claims"
    """Where values are kept, a file for each system."""
    write: str | None = None
    """Also write the tables to this Markdown file, all values to the JSON file beside it, and pictures to systems/;
    what the files hold of other systems stays."""

    def run(self) -> None:
        from posttrain import systems
        from posttrain.claim import as_json, as_table
        from posttrain.cli.laboratory import run_all

        if self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds}: it must be at least 1")
        known = systems.names()
        names = [one_of(name.replace("-", "_"), known, "claims") for name in self.systems] or known
        modules = {name: systems.load(name) for name in names}
        seeds = range(1 if self.quick else self.seeds)
        arms = {name: list(module.ARMS) for name, module in modules.items()}
        values = run_all(arms, seeds, Path(self.out), quick=self.quick, workers=self.workers)
        findings = {
            name: [claim.judged(values[name], seeds) for claim in module.CLAIMS] for name, module in modules.items()
        }
        tables = {name: as_table(found) for name, found in findings.items()}
        for name, table in tables.items():
            print(f"\n{systems.first_line(name)}\n\n{table}")
        if self.write:
            path = Path(self.write)
            page, rows = path.read_text() if path.is_file() else "", path.with_suffix(".json")
            path.write_text(systems.claims_page(tables, values, len(seeds), page))
            rows.write_text(as_json(findings, json.loads(rows.read_text()) if rows.is_file() else ()) + "\n")
            for name, module in modules.items():
                draw(path.parent / "systems" / f"{name.replace('_', '-')}.svg", module, values[name])


def draw(path: Path, module: Any, values: Any) -> None:
    """The picture of a system's first claim: its measure, in every arm that has it."""
    from posttrain.picture import dots

    measure = getattr(module, "SHOWN", module.CLAIMS[0].measure)
    arms = {
        arm: [value["measures"][measure] for value in by_seed.values() if measure in value["measures"]]
        for arm, by_seed in values.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dots(measure, {arm: found for arm, found in arms.items() if found}))


@dataclass(frozen=True)
class List:
    """The published systems and the methods in this version."""

    def run(self) -> None:
        from posttrain import systems

        print("methods")
        for name, first in systems.method_lines():
            print(f"  {name:18} {first}")
        print("systems")
        for name in systems.names():
            print(f"  {name.replace('_', '-'):18} {systems.first_line(name)}")
        print("parts of systems, for --with and compare\n  " + ", ".join(systems.parts()))


@dataclass(frozen=True)
class Doctor:
    """What is installed, what is missing for what, threads and devices."""

    def run(self) -> None:
        from posttrain.doctor import examine

        examine()


COMMANDS: dict[str, Any] = {
    "train": Train,
    "eval": Evaluate,
    "sft": Sft,
    "prefer": Prefer,
    "show": Show,
    "serve": Serve,
    "schedule": Schedule,
    "claims": Claims,
    "run": Published,
    "compare": Compare,
    "list": List,
    "doctor": Doctor,
}
