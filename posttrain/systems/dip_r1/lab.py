"""DIP-R1 on a laptop: squares on a grid, of which an annotator left out half of the faint ones."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import posttrain as pt
from posttrain.lab.world.crowd import SIDE, Crowd, box_of, cells_of
from posttrain.lab.world.words import Size, base, demonstrations
from posttrain.systems.dip_r1 import recipe
from posttrain.systems.dip_r1.frames import Frame, Truth
from posttrain.systems.dip_r1.match import counts, pooled
from posttrain.systems.dip_r1.reply import Stated
from posttrain.systems.dip_r1.reward import Weights, evaluation, reward

TINY = Size(hidden=64, layers=2, steps=400, rows=48)
STEPS, PER_STEP, SAMPLES, RATE, KL = 40, 12, 8, 1e-4, 0.04
TRAINING, TESTS = 2000, 96  # pictures
SETS: Mapping[str, Mapping[str, float]] = {
    "in domain": {},
    "out of domain": {"least": 5, "most": 8, "faint": 0.6},
}
FULL_REWARD = Weights()
FRAME = Frame(SIDE, SIDE, SIDE, SIDE, "absolute")


def tasks(world: Crowd, count: int, split: str, **more: float) -> list[pt.Task[Truth]]:
    """Pictures in which squares are to be found; the column `faint` has the boxes of the faint ones."""
    out = []
    for i, (squares, picture) in enumerate(world.pictures(count, split, **more)):
        asked = pt.user([{"type": "image", "image": picture}, {"type": "text", "text": "find"}])
        truth = Truth(tuple(map(box_of, squares.cells)), (), FRAME)
        out.append(pt.Task(f"{split}-{i}", (asked,), truth, {"faint": {*map(box_of, squares.faint)}}))
    return out


def read(rollout: pt.Rollout) -> Stated | None:
    found = cells_of(rollout.text)
    return found and Stated(tuple(map(box_of, found[0])), tuple(map(box_of, found[1])))


def measures(lab: pt.Lab) -> pt.Measures:
    """Of sampled replies and, for F1, of greedy ones too, on both sets."""
    out = {}
    for name, more in SETS.items():
        some = tasks(lab.world, lab.budget.items(TESTS), f"test {name}", **more)
        sampled = lab.evaluate(some, evaluation(read), samples=4).rollouts
        greedy = lab.evaluate(some, evaluation(read), temperature=0.0).rollouts
        out |= {f"{name} {what}": value for what, value in found_in(sampled).items()}
        out[f"{name} greedy F1"] = found_in(greedy)["F1"]
        out[f"{name} greedy faint recall"] = found_in(greedy)["faint recall"]
    return out


def found_in(rollouts: Sequence[pt.Rollout]) -> dict[str, float]:
    """Precision, recall and F1 of all boxes together; of the faint squares, the shares that are reported and looked at;
    of all looks, the share that is at faint squares."""
    pairs = [(read(one) or Stated((), ()), one.task) for one in rollouts]
    total = pooled(counts(said.boxes, task.truth.boxes, (), 0.5) for said, task in pairs)
    faint = [(said, box) for said, task in pairs for box in task.columns["faint"]]
    looks = [box in task.columns["faint"] for said, task in pairs for box in said.looks]
    return {
        "precision": total.precision,
        "recall": total.recall,
        "F1": total.f(),
        "faint recall": statistics.fmean(box in said.boxes for said, box in faint) if faint else 0.0,
        "look recall": statistics.fmean(box in said.looks for said, box in faint) if faint else 0.0,
        "look precision": statistics.fmean(looks) if looks else 0.0,
        "unparsable": statistics.fmean(read(one) is None for one in rollouts),
    }


def shuffled_looks(plain: pt.Reward, weight: float) -> pt.Reward:
    """The reward, with the look terms of a group handed to one another: paid as much, for nothing that was done."""

    def of_group(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        scores = [one for one in plain(group) if isinstance(one, pt.Score)]
        looks = [one.parts["look"] for one in scores]
        random.Random(pt.mix(*map(hash_of, group))).shuffle(looks)
        return [
            replace(one, value=one.value + weight * (look - one.parts["look"]))
            for one, look in zip(scores, looks, strict=True)
        ]

    return of_group


def hash_of(rollout: pt.Rollout) -> str:
    return f"{rollout.task.key} {rollout.text}"


def arm(weights: Weights = FULL_REWARD, shuffled: bool = False) -> pt.Arm:
    def of_weights(lab: pt.Lab) -> pt.Recipe:
        paid = reward(weights, read)
        paid = shuffled_looks(paid, weights.look_weight) if shuffled else paid
        return recipe(paid, lab.policy, samples=SAMPLES, kl=KL, read=read)

    return pt.trial(
        Crowd,
        of_weights,
        measures,
        steps=STEPS,
        per_step=PER_STEP,
        lr=RATE,
        size=TINY,
        tasks=lambda lab: tasks(lab.world, TRAINING, "training"),
    )


def supervised(seed: int, budget: pt.Budget) -> pt.Measures:
    """The base, taught by an annotator who leaves out nothing: as many replies as reinforcement samples."""
    world = Crowd(seed)
    lab = pt.Lab(seed, budget, world, base(world, seed, budget.size(TINY)))
    shown = demonstrations(replace(world, reports_seen=1.0, reports_unseen=1.0, invents=0.0), pt.mix(seed, "SFT"))
    pt.tiny.warm_start(lab.policy, shown, budget.steps(STEPS), budget.items(PER_STEP) * SAMPLES, RATE)
    return measures(lab)


ARMS = {
    "base": pt.trial(Crowd, None, measures, size=TINY),
    "accuracy only": arm(Weights(look_weight=0.0)),
    "DIP-R1": arm(),
    "SFT": supervised,
    "uniform looks": arm(Weights(variance="uniform")),
    "shuffled looks": arm(shuffled=True),
}
PICTURE = "in domain faint recall"
CLAIMS = pt.claims("""
    the three rewards improve detection in domain
        paper: significant improvement in domain (abstract)
        in domain F1 in [0, 1]: DIP-R1 > base
    the three rewards improve detection out of domain
        paper: significant improvement out of domain (abstract)
        out of domain F1 in [0, 1]: DIP-R1 > base
    in domain, the look reward adds to the rewards for accuracy and form
        paper: its claim for the variance-guided look reward
        in domain F1 in [0, 1]: DIP-R1 > accuracy only
    out of domain, the look reward adds to the rewards for accuracy and form
        paper: its claim for the variance-guided look reward
        out of domain F1 in [0, 1]: DIP-R1 > accuracy only
    in domain, what is hard to see is found more often with the look reward
        paper: its claim for looks at ambiguous regions; here of the faint squares
        in domain faint recall in [0, 1]: DIP-R1 > accuracy only
    out of domain, what is hard to see is found more often with the look reward
        paper: its claim for looks at ambiguous regions; here of the faint squares
        out of domain faint recall in [0, 1]: DIP-R1 > accuracy only
    in domain, accuracy and form alone improve on the base
        paper: its claim for the weighted reward of precision and recall
        in domain F1 in [0, 1]: accuracy only > base
    out of domain, accuracy and form alone improve on the base
        paper: its claim for the weighted reward of precision and recall
        out of domain F1 in [0, 1]: accuracy only > base
    in domain, reinforcement is better than supervised learning
        paper: it outperforms supervised fine-tuning (abstract); here of as many replies, written from the truth
        in domain F1 in [0, 1]: DIP-R1 > SFT
    out of domain, reinforcement is better than supervised learning
        paper: it outperforms supervised fine-tuning (abstract); here of as many replies, written from the truth
        out of domain F1 in [0, 1]: DIP-R1 > SFT
    the look reward makes the model look at what is hard to see
        ours: of the faint squares, those that are looked at
        in domain look recall in [0, 1]: DIP-R1 > accuracy only + 0.1
    the variance aims the looks
        ours: against the same reward where all regions count alike
        in domain look precision in [0, 1]: DIP-R1 > uniform looks
    the variance finds more than looks at everything
        ours: against the same reward where all regions count alike
        in domain faint recall in [0, 1]: DIP-R1 > uniform looks
    the look reward must be earned by the reply that gets it
        ours: against look terms that are handed around in the group
        in domain faint recall in [0, 1]: DIP-R1 > shuffled looks
    no precision is lost
        ours: within 0.02 of the base
        in domain precision in [0, 1]: DIP-R1 > base - 0.02
""")
HEADLINE = pt.Headline("the three rewards improve detection in domain")
SMOKE = pt.Smoke("""
    laptop
    laptop --look-weight 0 --f-beta 1
    train --data {crowd_pictures} --model {qwen2_5_vl} --max-new 8 --samples 2 --held-out {crowd_pictures}
    train --data {crowd_pictures} --model {qwen3_vl} --max-new 8 --samples 2 --kl 0 --variance iou --truth-only
    sft --data {crowd_pictures} --model {qwen3_vl} --max-new 8
    evaluate --data {crowd_pictures} --model {qwen2_5_vl} --max-new 8 --samples 2
""")
