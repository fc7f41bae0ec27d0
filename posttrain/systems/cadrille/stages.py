"""Imitate programs, sample, reinforce by execution, prefer, evaluate: on a checkpoint, and shapes of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import posttrain as pt
from posttrain.policy.pretrained import checkpoint_path, has_encoders
from posttrain.systems.cadrille import recipe
from posttrain.systems.cadrille.data import Input, demonstrations_of, read_shapes, tasks_of
from posttrain.systems.cadrille.kernel.pool import Kernel, Target
from posttrain.systems.cadrille.measures import as_table, drawing, measures_of, predictions
from posttrain.systems.cadrille.mining import SAMPLED, THRESHOLD, graded_samples, hard, read_samples
from posttrain.systems.cadrille.points import SEEN
from posttrain.systems.cadrille.preferences import BETA, ROUNDS, pairs, prefer_in_rounds
from posttrain.systems.cadrille.reward import reward

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class ShapeOptions:
    """Which shapes, and what the model is shown of them."""

    data: str
    """Folder of programs (*.py) or of meshes (STL, OBJ, PLY, OFF), or a file with `program` and `description`."""
    inputs: tuple[Input, ...] = ("points",)
    """points, image (four views) or text (the description); of several, one is drawn for each shape."""
    limit: int | None = None
    """Use only the first so many shapes."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    workers: int | None = None
    """Processes of the geometry kernel; as many as there are cores if not given."""
    deadline: float = 5.0
    """Seconds that a program may take; one that takes longer is invalid."""

    def __post_init__(self):
        pt.at_least(1, workers=self.workers)
        pt.at_least(0.1, deadline=self.deadline)

    def kernel(self) -> Kernel:
        return Kernel(self.workers, self.deadline)

    def tasks(self, kernel: Kernel, seed: int, held_out: str | None = None) -> list[pt.Task[Target]]:
        """Of `data`, or of another folder or file."""
        chosen = (held_out, None, "test") if held_out else (self.data, self.limit, self.split)
        return pt.ranks.run_on_primary(
            lambda: tasks_of(read_shapes(*chosen), self.inputs, kernel, seed), "for what is shown of the shapes"
        )

    def tests(self, held_out: Sequence[str], kernel: Kernel, seed: int) -> dict[str, list[pt.Task[Target]]]:
        return {name: self.tasks(kernel, seed, file) for name, file in pt.named_files(held_out).items()}


def sft(
    shape: ShapeOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run(
        "runs/cadrille-sft", steps=120_000, tasks=32, lr=2e-4, schedule="cosine", warmup=1000, weight_decay=0.01
    ),
    noisy: float = 0.5,
) -> pt.Session:
    """Learn to write the programs of shapes. A model that has seen no points yet is given an encoder of them.

    noisy  share of the shapes whose vertices are disturbed, by Gaussian noise of 0.01
    """
    scale.refuse_sampler()
    pt.at_least(0, noisy=noisy)
    shapes = read_shapes(shape.data, shape.limit, shape.split)
    unseen = "points" in shape.inputs and not has_encoders(checkpoint_path(model.model))
    policy = model.policy(*([pt.PointEncoder(SEEN)] if unseen else []))
    with shape.kernel() as kernel:
        shown = pt.ranks.run_on_primary(
            lambda: demonstrations_of(shapes, shape.inputs, kernel, run.seed, noisy), "for what is shown of the shapes"
        )
    return pt.sft(policy, shown, run)


def sample(
    shape: ShapeOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/cadrille-samples"),
    samples: int = 5,
) -> Path:
    """Write OUT/samples.jsonl, programs that the supervised model writes for each shape, and what they earn.

    Stage train finds hard shapes by it, stage dpo makes preferences of it.

    samples  programs for a shape; the paper takes three for hard shapes and five for preferences
    """
    pt.at_least(1, samples=samples)
    out = Path(output.out)
    with shape.kernel() as kernel:
        tasks, policy = shape.tasks(kernel, output.seed), model.policy()
        with scale.asking(None, model, policy, out, tasks) as player:
            settings = {"seed": output.seed, **output.settings}
            pt.prepare_folder(out, "samples", [SAMPLED], settings, resume=output.resume, overwrite=output.overwrite)
            line, seed = graded_samples(reward(kernel)), pt.mix(output.seed, "samples")
            options = {"samples": samples, "seed": seed, "name": "shapes", "quiet": output.quiet}
            found = pt.collect(player, tasks, line, out / SAMPLED, **options)
    if pt.ranks.is_primary():
        print(f"{out / SAMPLED}: {len(found)} shapes, {len(hard(found))} of them hard (a mean below {THRESHOLD})")
    return out


def train(
    shape: ShapeOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/cadrille", steps=1000, tasks=128, lr=3e-5, max_norm=0.1),
    sampled: str | None = None,
    threshold: float = THRESHOLD,
    samples: int = 16,
    kept: int = 4,
    updates: int = 3,
    clip: float = 0.1,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Dr. CPPO on shapes, from the checkpoint that stage sft has written. The paper takes 20 epochs over hard ones.

    sampled    samples.jsonl of stage sample: only its hard shapes are trained on; all of them if not given
    threshold  mean reward of three samples, below which a shape is hard
    samples    programs for a shape
    kept       of these, those of largest advantage are learned; all of them where it is as many as `samples`
    updates    passes over each batch
    clip       how far the probability of a token may move before it is clipped
    held_out   shapes that are only evaluated, of the same kind: FOLDER or FILE, or NAME=...
    """
    with shape.kernel() as kernel:
        tasks = hard_tasks(shape.tasks(kernel, run.seed), sampled, threshold)
        plain = recipe(reward(kernel), samples=samples, kept=kept, updates=updates, clip=clip)
        tests = shape.tests(held_out, kernel, run.seed)
        return scale.train(model.policy(), tasks, replace(plain, draw=drawing(kernel)), run, held_out=tests)


def hard_tasks(tasks: list[pt.Task[Target]], sampled: str | None, threshold: float) -> list[pt.Task[Target]]:
    """Raises ValueError when none is left."""
    if sampled is None:
        return tasks
    chosen = hard(read_samples(sampled), threshold)
    found = [task for task in tasks if task.key in chosen]
    if not found:
        raise ValueError(f"`sampled={sampled}`: no shape has a mean reward below `threshold={threshold}`")
    if pt.ranks.is_primary():
        print(f"{len(found)} of {len(tasks)} shapes are hard")
    return found


def dpo(
    shape: ShapeOptions,
    sampled: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/cadrille-dpo", steps=1000, tasks=160, lr=1e-5),
    beta: float = BETA,
    rounds: int = ROUNDS,
) -> pt.Session:
    """The offline rival: DPO on samples of the supervised model, in OUT-round-1, then from itself as the reference.

    sampled  samples.jsonl of stage sample
    beta     of DPO
    rounds   times that the reference becomes the policy; each is a run of `steps` steps
    """
    scale.refuse_sampler()
    with shape.kernel() as kernel:
        tasks = shape.tasks(kernel, run.seed)
    return prefer_in_rounds(model.policy(), pairs(tasks, read_samples(sampled)), run, beta=beta, rounds=rounds)


def evaluate(
    shape: ShapeOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/cadrille-evaluation"),
) -> Path:
    """Chamfer distance, IoU and share of invalid programs, in OUT/measures.json, and each of them in predictions.jsonl.

    Published: greedy, `temperature=0`.
    """
    with shape.kernel() as kernel:
        replies, found = scale.evaluate(model.policy(), shape.tasks(kernel, output.seed), reward(kernel), 1, output)
        lines = predictions([one for one, _ in found.graded], kernel, output.seed)
    measures = measures_of(lines)
    replies.write(measures)
    if pt.ranks.is_primary():
        pt.Lines(replies.folder / PREDICTIONS, resume=False).replace(lines)
        print(as_table(measures))
    return replies.folder


def laptop(run: pt.Run = pt.Run("runs/cadrille", steps=24, tasks=4, lr=3e-4), kept: int = 4) -> pt.Session:
    """Plates with hubs, for a model that has imitated programs of any two pieces; the real kernel runs its own.

    kept  of 16 samples of a solid, those of largest advantage are learned; 16 for all
    """
    from posttrain.systems.cadrille import lab

    shown, tests = lab.tasks(run.seed, lab.TRAINING, "training"), lab.tasks(run.seed, lab.TESTS, "test")
    with Kernel(1, lab.DEADLINE_S) as kernel:
        made = replace(recipe(reward(kernel), kept=kept), draw=drawing(kernel))
        return pt.train(lab.policy_of(run.seed, pt.Budget()), shown, made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "sft": sft, "sample": sample, "dpo": dpo, "evaluate": evaluate}
