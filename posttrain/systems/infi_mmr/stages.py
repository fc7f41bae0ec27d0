"""The curriculum on drawn numbers, and on a checkpoint and problems of the user's own; captions; accuracy by type."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import posttrain as pt
from posttrain.systems.infi_mmr import recipe, split_steps
from posttrain.systems.infi_mmr.answers import Answer
from posttrain.systems.infi_mmr.captions import CAPTIONS, REPLIES, description, to_describe, write_captions
from posttrain.systems.infi_mmr.data import Problem, View, problems, task
from posttrain.systems.infi_mmr.overlap import without_overlap
from posttrain.systems.infi_mmr.reward import Weights, evaluation, reward

VIEWS: tuple[View, ...] = ("text", "captioned", "pictures")


@dataclass(frozen=True)
class PhaseOptions:
    """The phases: their files, and their shares of the steps."""

    text: str | None = None
    """Problems of the first phase, in text (as DeepScaleR): JSONL, CSV or Parquet file, or a Hub dataset id."""
    captioned: str | None = None
    """Problems of the second, with pictures and a column `caption`: captions.jsonl of stage caption."""
    pictures: str | None = None
    """Problems of the third, with pictures (as ViRL39K). A phase without a file is left out."""
    text_steps: int | None = None
    """Steps of the first phase; phases without a number share what the others leave of `steps`."""
    captioned_steps: int | None = None
    """Steps of the second phase."""
    pictures_steps: int | None = None
    """Steps of the third phase."""
    drop_mismatched: bool = False
    """Leave out lines whose `<image>` do not match their pictures; otherwise such a line is an error."""
    limit: int | None = None
    """Use only the first so many lines of each file."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def files(self) -> dict[View, str]:
        """Raises ValueError when there is none, or steps are given for a phase that is left out."""
        given: dict[View, str | None] = {view: getattr(self, view) for view in VIEWS}
        found: dict[View, str] = {view: file for view, file in given.items() if file is not None}
        if not found:
            raise ValueError("a curriculum needs data: give `text`, `captioned` or `pictures`, or several of them")
        for view in VIEWS:
            steps = getattr(self, f"{view}_steps")
            if steps is not None and view not in found:
                raise ValueError(f"`{view}_steps={steps}`: this phase has no data; give `{view}`")
        return found

    def tasks(self, held_out: Sequence[Problem] = ()) -> dict[View, list[pt.Task[Answer]]]:
        """What each phase asks, without problems whose words stand in held-out ones.

        Raises ValueError naming file and line of the first that cannot be used.
        """
        found: dict[View, list[pt.Task[Answer]]] = {}
        for view, file in self.files().items():
            kept = problems(file, limit=self.limit, split=self.split, drop=self.drop_mismatched)
            kept = decontaminated(view, kept, held_out) if held_out else kept
            found[view] = [task(one, view) for one in kept]
        return found

    def tests(self, held_out: tuple[str, ...]) -> dict[str, list[Problem]]:
        """The problems of held-out files by name."""
        named = pt.named_files(held_out).items()
        return {name: problems(file, split="test", drop=self.drop_mismatched) for name, file in named}

    def steps(self, total: int) -> dict[View, int]:
        """The steps of each phase. Raises ValueError where they do not add up."""
        wanted: dict[View, int | None] = {view: getattr(self, f"{view}_steps") for view in self.files()}
        return split_steps(total, wanted)


def train(
    phase: PhaseOptions,
    weights: Weights,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/infi-mmr", steps=600, tasks=128, lr=1e-6),
    samples: int = 8,
    kl: float = 0.01,
    decontaminate: bool = True,
    held_out: tuple[str, ...] = (),
) -> Path:
    """The curriculum on your checkpoint: a run in OUT for each phase, and the model in OUT/model.

    `steps` is the sum over all phases.

    samples        samples of a problem
    kl             weight of the divergence from the model that a phase begins with; 0 loads no reference
    decontaminate  leave out training problems whose words stand in held-out files
    held_out       problems that are only evaluated, in every phase and without captions: FILE, or NAME=FILE
    """
    pt.at_least(2, samples=samples)
    pt.at_least(0, kl=kl)
    steps, tests = phase.steps(run.steps), phase.tests(held_out)
    tasks = phase.tasks([one for test in tests.values() for one in test] if decontaminate else ())
    made = partial(recipe, reward(weights), samples=samples, kl=kl, evaluation=evaluation())
    phases = [pt.Phase(view, some, made, steps[view]) for view, some in tasks.items()]
    asked = {name: [task(one, plain_view(one)) for one in test] for name, test in tests.items()}
    return pt.train_phases(model.policy(), phases, run, scale.train, held_out=asked)


def plain_view(one: Problem) -> View:
    """How a problem is evaluated: by its pictures alone where it has any."""
    return "pictures" if one.pictures else "text"


def decontaminated(view: View, some: list[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """Raises ValueError when nothing is left."""
    kept = without_overlap(some, held_out)
    if len(kept) < len(some) and pt.ranks.is_primary():
        print(f"{view}: {len(some) - len(kept)} of {len(some)} problems left out, whose words stand in held-out files")
    if not kept:
        raise ValueError(
            f"all problems of the phase {view} stand in files of `held_out`; `decontaminate=False` keeps them"
        )
    return kept


def caption(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/infi-mmr-captions"),
    captioner: str | None = None,
    drop_mismatched: bool = False,
    limit: int | None = None,
    split: str = "train",
) -> Path:
    """Have the pictures of all problems described, and write OUT/captions.jsonl, for the phase captioned.

    data             problems with pictures: JSONL, CSV or Parquet file, or a Hugging Face dataset id
    captioner        a chat server (http://...) that takes pictures, a Hub id or a folder; the model itself if not given
    drop_mismatched  leave out lines whose `<image>` do not match their pictures; otherwise such a line is an error
    limit            use only the first so many lines
    split            split of a Hugging Face dataset
    """
    found = problems(data, limit=limit, split=split, drop=drop_mismatched)
    asked, folder = [to_describe(one) for one in found], Path(output.out)
    settings = {"seed": output.seed, **output.settings}
    with scale.asking(captioner, model, None, folder, asked) as player:
        pt.prepare_folder(
            folder, "captions", (REPLIES, CAPTIONS), settings, resume=output.resume, overwrite=output.overwrite
        )
        seed = pt.mix(output.seed, "captions")
        lines = pt.collect(player, asked, description, folder / REPLIES, seed=seed, name="problems", quiet=output.quiet)
    written = write_captions(folder, found, lines)
    if not written:
        raise ValueError(f"not one of {len(found)} captions has a word in it; {folder / REPLIES} has what was said")
    if pt.ranks.is_primary():
        print(f"{folder / CAPTIONS}: {written} of {len(found)} problems with their captions")
    return folder


def evaluate(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/infi-mmr-evaluation"),
    captions: bool = False,
    samples: int = 1,
    drop_mismatched: bool = False,
    limit: int | None = None,
    split: str = "test",
) -> Path:
    """The accuracy of boxed answers by type, in OUT/measures.json; every reply is in OUT/replies.jsonl.

    data             problems in text or with pictures: JSONL, CSV or Parquet file, or a Hugging Face dataset id
    captions         show the column `caption` with the pictures
    samples          replies to a problem, each of which counts
    drop_mismatched  leave out lines whose `<image>` do not match their pictures; otherwise such a line is an error
    limit            use only the first so many lines
    split            split of a Hugging Face dataset
    """
    pt.at_least(1, samples=samples)
    found = problems(data, limit=limit, split=split, drop=drop_mismatched)
    asked = [task(one, "captioned" if captions else plain_view(one)) for one in found]
    replies, graded = scale.evaluate(model.policy(), asked, evaluation(), samples, output)
    measures = accuracies(graded)
    replies.write(measures)
    if pt.ranks.is_primary():
        for name, row in measures.items():
            print(f"{name:8} {row['accuracy']:.3f} of {row['replies']:,.0f} replies")
    return replies.folder


def accuracies(found: pt.Evaluation) -> dict[str, dict[str, float]]:
    """Accuracy and number of replies, of each type of answer and of all."""
    values: dict[str, list[float]] = defaultdict(list)
    for rollout, score in found.graded:
        truth: Answer = rollout.task.truth
        values[truth.kind].append(score.value)
        values["all"].append(score.value)
    return {
        kind: {"accuracy": statistics.fmean(some), "replies": float(len(some))} for kind, some in sorted(values.items())
    }


def laptop(
    phases: tuple[View, ...] = VIEWS,
    run: pt.Run = pt.Run("runs/infi-mmr", steps=60, tasks=12, lr=3e-4),
) -> Path:
    """Arithmetic on drawn numbers: a model that thinks on text is led to think on pictures.

    phases  the views that are trained, in this order, in equal parts of `steps`; pictures alone is direct RL
    """
    from posttrain.systems.infi_mmr import lab

    world, policy = lab.world_of(run.seed), lab.base_policy(run.seed)
    tests = {view: lab.tasks(world, view, 64, "held out", held_out=True) for view in VIEWS}
    return pt.train_phases(policy, lab.phases(world, phases, run.steps), run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "caption": caption, "evaluate": evaluate}
