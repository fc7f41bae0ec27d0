"""Learn the form, reinforce, evaluate: on a checkpoint that sees, and pictures of the user's own or as published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import posttrain as pt
from posttrain.episode import decoded_with
from posttrain.policy.pretrained import checkpoint_path, sees_pictures
from posttrain.systems.dip_r1 import recipe
from posttrain.systems.dip_r1.data import Extent, Scene, scenes
from posttrain.systems.dip_r1.frames import Coordinates, Truth, coordinates_of, frame_of
from posttrain.systems.dip_r1.measures import as_table, measures_of
from posttrain.systems.dip_r1.prompts import demonstration, question
from posttrain.systems.dip_r1.reply import read_loosely
from posttrain.systems.dip_r1.reward import Weights, evaluation, reward

MOST_PIXELS = 1_003_520  # of a resized picture: 1280 tokens of 28 x 28 pixels, Qwen2.5-VL's suggestion


@dataclass(frozen=True)
class PictureOptions:
    """Which pictures, and what is to be found in them."""

    data: tuple[str, ...]
    """COCO-style JSON, or CrowdHuman's .odgt: FILE, or NAME=FILE."""
    pictures: str | None = None
    """Folder of the pictures; each file's own if not given."""
    category: str | None = None
    """Of COCO-style files, the category that is to be found; their only one if not given."""
    extent: Extent = "full"
    """Of CrowdHuman's boxes: of full bodies, or of what is visible of them."""
    coordinates: Coordinates | None = None
    """How the model writes boxes: absolute, pixels of the resized picture (Qwen2.5-VL), or thousand, thousandths of its
    sides (Qwen2-VL, Qwen3-VL); that of the checkpoint's family if not given."""
    limit: int | None = None
    """Use only the first so many pictures of each file."""

    def scenes(self, files: tuple[str, ...], argument: str = "data") -> dict[str, list[Scene]]:
        """Those of files by name."""
        if not files:
            raise ValueError(f"`{argument}`: there must be at least one file")
        limit = self.limit if argument == "data" else None
        return {
            name: scenes(file, self.pictures, self.category, self.extent, limit)
            for name, file in pt.named_files(files, argument).items()
        }

    def tasks(
        self, policy: pt.VisionPolicy, files: tuple[str, ...], argument: str = "data"
    ) -> dict[str, list[pt.Task[Truth]]]:
        """Those of files by name, with boxes as the policy writes them."""
        coordinates = coordinates_of(policy.model.config.model_type, self.coordinates)
        found = self.scenes(files, argument)
        return {
            name: [
                task_of(one, f"{name}/{one.key}" if len(found) > 1 else one.key, policy, coordinates) for one in some
            ]
            for name, some in found.items()
        }


def task_of(one: Scene, key: str, policy: pt.VisionPolicy, coordinates: Coordinates) -> pt.Task[Truth]:
    try:
        frame = frame_of(one.width, one.height, policy.preprocessing, coordinates)
    except ValueError as error:
        raise ValueError(f"{one.place}: {error}") from error
    words = {"type": "text", "text": question(one.category, frame)}
    asked = pt.user([{"type": "image", "image": one.picture}, words])
    return pt.Task(key, (asked,), Truth(tuple(one.boxes), tuple(one.ignored), frame), {"category": one.category})


def flat(tasks: dict[str, list[pt.Task[Truth]]]) -> list[pt.Task[Truth]]:
    return [task for some in tasks.values() for task in some]


def policy_that_sees(model: pt.ModelOptions) -> pt.VisionPolicy:
    """Raises ValueError for a model that sees no pictures."""
    limited = model.with_pixel_limits(None, MOST_PIXELS) if sees_pictures(checkpoint_path(model.model)) else model
    policy = limited.policy()
    if not isinstance(policy, pt.VisionPolicy):
        raise ValueError(f"`model={model.model}`: it sees no pictures; give one of Qwen's vision-language models")
    return policy


def train(
    picture: PictureOptions,
    weights: Weights,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/dip-r1", steps=500, tasks=64, lr=1e-6),
    samples: int = 8,
    kl: float = 0.04,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GRPO on the three rewards. Give room for long lists: `max_new=2048`; one that is cut off earns nothing.

    samples   replies to a picture, among which looks are for what they disagree on
    kl        weight of the divergence from the starting model; 0 loads no reference
    held_out  pictures that are only evaluated, by F1: FILE, or NAME=FILE
    """
    policy = policy_that_sees(model)
    tasks = flat(picture.tasks(policy, picture.data))
    tests = picture.tasks(policy, held_out, "held_out") if held_out else {}
    made = recipe(reward(weights), policy, samples=samples, kl=kl, evaluation=evaluation())
    return scale.train(policy, tasks, made, run, held_out=tests)


def sft(
    picture: PictureOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/dip-r1-sft", steps=50, tasks=64, lr=1e-5),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn the form, for a checkpoint that does not answer in it when asked: replies written from the annotations.

    held_out  pictures of which the loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    policy = policy_that_sees(model)
    tests = picture.tasks(policy, held_out, "held_out") if held_out else {}
    return pt.sft(
        policy,
        demonstrations(flat(picture.tasks(policy, picture.data))),
        run,
        held_out={name: demonstrations(some) for name, some in tests.items()},
    )


def demonstrations(tasks: list[pt.Task[Truth]]) -> list[pt.Demonstration]:
    return [
        pt.Demonstration((*task.prompt, pt.assistant(demonstration(task.columns["category"], task.truth))), task.key)
        for task in tasks
    ]


def evaluate(
    picture: PictureOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/dip-r1-evaluation"),
    samples: int = 1,
) -> Path:
    """A table with a line for each file, in OUT/measures.json; every reply is in OUT/replies.jsonl.

    Boxes are read loosely, so that a model that was not taught the form is not undersold.

    samples  replies to a picture: one is greedy, and all of its boxes are of equal confidence; of several, the share
             that holds a box is its confidence
    """
    pt.at_least(1, samples=samples)
    policy = policy_that_sees(model)
    tasks = picture.tasks(policy, picture.data)
    env = decoded_with(pt.single_turn, temperature=0.0) if samples == 1 else pt.single_turn
    replies, found = scale.evaluate(policy, flat(tasks), evaluation(), samples, output, env)
    groups, measures = {group[0].task.key: group for group in graded_groups(found)}, dict[str, dict[str, float]]()
    for name, some in tasks.items():
        there = [task for task in some if task.key in groups]
        said = [[read_loosely(rollout) for rollout in groups[task.key]] for task in there]
        measures[name or "pictures"] = measures_of(said, [task.truth for task in there])
    replies.write(measures)
    if pt.ranks.is_primary():
        print("\n".join(as_table(measures)))
    return replies.folder


def graded_groups(found: pt.Evaluation) -> list[pt.Group]:
    """The replies that could be had to each picture; without those to which there was none."""
    groups = [
        [rollout for rollout, score in zip(group, scores, strict=True) if isinstance(score, pt.Score)]
        for group, scores in zip(found.groups, found.scores, strict=True)
    ]
    return [group for group in groups if group]


def laptop(
    weights: Weights,
    run: pt.Run = pt.Run("runs/dip-r1", steps=40, tasks=12, lr=1e-4),
) -> pt.Session:
    """Squares on a grid, some of them faint, after an annotator who leaves out half of the faint ones."""
    from posttrain.lab.world.words import base
    from posttrain.systems.dip_r1 import lab

    world = lab.Crowd(run.seed)
    policy = base(world, run.seed, lab.TINY)
    shared = {"read": lab.read, "evaluation": evaluation(lab.read)}
    made = recipe(reward(weights, lab.read), policy, samples=lab.SAMPLES, kl=lab.KL, **shared)
    tests = {name: lab.tasks(world, 48, f"test {name}", **more) for name, more in lab.SETS.items()}
    return pt.train(policy, lab.tasks(world, lab.TRAINING, "training"), made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "sft": sft, "evaluate": evaluate}
