"""What SRRL claims, on pictures of a balance, and the control that decides what the claim is worth: the same rounds for
a model that was trained without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import posttrain as pt
from posttrain.lab.world.balance import Balance
from posttrain.lab.world.pictures import Size, base
from posttrain.systems.srrl import recipe
from posttrain.systems.srrl.curriculum import Curriculum
from posttrain.systems.srrl.reflection import Trained, reflected

TINY, TINY_DENOISING = Size(steps=200), pt.Denoising(steps=8, guidance=2.0)
ROUNDS = (0, 1, 2)  # by which models are measured
STEPS, EVERY, RATE = 12, 4, 5e-4  # so that rounds are 0, 1, 2 over the run
SAMPLES, BRANCHES, LASTS = 32, 5, (2, 4, 6, 8)
SEEN = 128  # pictures of each of the two prompts in a measurement


def base_policy(seed: int, budget: pt.Budget = pt.FULL) -> pt.DiffusionPolicy:
    """It has seen beams that tilt either way, inverted world or not."""
    return base(Balance(seed), seed, budget.size(TINY), TINY_DENOISING)


def plain(world: Balance, budget: pt.Budget, trained: Trained = "last") -> pt.Recipe:
    """64 pictures a stage, 32 of each prompt, all of them trained, with one update: without B2-DiffuRL's parts."""
    return recipe(pt.each(world.score), trained=trained, samples=budget.items(SAMPLES), select=None, epochs=1)


def branched(world: Balance, budget: pt.Budget) -> pt.Recipe:
    """12 groups of 5 branches, of which the best and the worst are trained on the steps that they do not share."""
    return recipe(pt.each(world.score), samples=BRANCHES, epochs=1)


def arm(
    recipe_for: Callable[[Balance, pt.Budget], pt.Recipe] | None,
    every: int = 0,
    lasts: Sequence[int] = (),
    groups: int = 2,
    inverted: bool = False,
    trained: Trained = "last",
) -> pt.Arm:
    """`every` stages there is one more round; 0: there are none. Rounds are measured as they were `trained`."""

    def run(seed: int, budget: pt.Budget) -> pt.Measures:
        world, policy = Balance(seed, inverted), base_policy(seed, budget)
        if recipe_for is not None:
            steps = budget.steps(STEPS)
            rounds = [stage // every if every else 0 for stage in range(steps)]
            source = Curriculum(pt.ShuffledSource(world.tasks(), seed), rounds, lasts, seed)
            made, per_step = recipe_for(world, budget), budget.items(groups)
            pt.train_in_memory(policy, source, made, steps=steps, per_step=per_step, lr=RATE, seed=seed)
        spent = policy.calls / 1000
        found = logic_by_rounds(policy, world, seed, budget.items(SEEN), trained)
        return found | {"training calls, thousands": spent}

    return run


def logic_by_rounds(
    policy: pt.DiffusionPolicy, world: Balance, seed: int, samples: int, trained: Trained = "last"
) -> dict[str, float]:
    """Logic accuracy and reward after 0, 1 and 2 rounds, and the UNet calls of a picture then."""
    out: dict[str, float] = {}
    for k in ROUNDS:
        before, drawn = policy.calls, samples * len(world.tasks())
        found = pt.evaluate(
            {"policy": policy},
            world.tasks(),
            pt.each(world.score),
            reflected(k, trained),
            samples=samples,
            seed=pt.mix(seed, "measured"),
        )
        out |= {
            f"logic@{k}": found.part("logic"),
            f"reward@{k}": found.reward,
            f"as told@{k}": found.part("as told"),
            f"calls@{k}": (policy.calls - before) / drawn,
        }
    return out


ARMS = {
    "base": arm(None),
    "ddpo": arm(plain),
    "srrl": arm(plain, EVERY),
    "srrl, every round": arm(lambda world, budget: plain(world, budget, "all"), EVERY, trained="all"),
    "branches": arm(branched, lasts=LASTS, groups=12),
    "inverted, base": arm(None, inverted=True),
    "inverted, srrl": arm(plain, EVERY, inverted=True),
}
PICTURE = "logic@2"
CLAIMS = pt.claims("""
    reflection beats DDPO
        paper: SRRL with its rounds against DDPO's single walk, at equal iterations
        logic@2: srrl > logic@0: ddpo
    SRRL beats the base model
        paper: SRRL against Stable Diffusion
        logic@2: srrl > logic@0: base
    SRRL learns what the base model's pictures do not show
        paper: unconventional phenomena (T5); here the heavy side rises
        logic@2: inverted, srrl > logic@0: inverted, base
    training with rounds of reflection beats DDPO given the same rounds
        ours: what is left of the comparison when both may reflect at inference
        logic@2: srrl > ddpo
    rounds of reflection help a model trained without them
        ours: DDPO with rounds against DDPO without
        logic@2: ddpo > logic@0: ddpo
    rounds of reflection help the untrained model
        ours: the base model with rounds against itself without: reflection, no reinforcement
        logic@2: base > logic@0: base
    training every round beats training only the last
        ours: the paper's objective against its released code
        logic@2: srrl, every round > srrl
    branches with selection beat DDPO
        ours: the B2-DiffuRL part of the released code alone, at equal iterations and fewer UNet calls
        logic@0: branches > ddpo
""")
HEADLINE = pt.Headline(
    "reflection beats DDPO",
    "both learn the balance equally well, and seeds differ widely (0.57 to 0.97)",
)
SMOKE = pt.Smoke(
    """
    laptop
    laptop --rounds 0
    laptop --trained all --branches
    laptop --inverted
    train --model {stable_diffusion} --data {prompts} --reward clip={clip} --denoising 3 --device cpu
        --held-out {prompts} --rounds 1
    train --model {stable_diffusion} --data {prompts} --reward clip={clip} --denoising 3 --device cpu
        --method ddpo
    train --model {stable_diffusion} --data {prompts} --reward clip={clip} --denoising 3 --device cpu
        --trained all --lora 0
    """,
    {"lab.TINY": replace(TINY, steps=4)},
)
