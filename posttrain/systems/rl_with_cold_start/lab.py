"""RL with Cold Start on drawn digits: a student that guesses at pictures, and a teacher's chains on them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

import torch

import posttrain as pt
from posttrain.lab.world.glyphs import Glyphs, answer, chain_text, is_readable, is_right, shows_work, spoil
from posttrain.lab.world.words import Size, base
from posttrain.row import demonstration_rows
from posttrain.systems.rl_with_cold_start import recipe
from posttrain.systems.rl_with_cold_start.reflection import gap, reflects
from posttrain.systems.rl_with_cold_start.styles import right_chains

STUDENT = Size(hidden=64, layers=2, steps=300)
TEACHER = Size(hidden=96, layers=3, steps=250)
CHAINS, SFT_ROWS, SFT_RATE, SFT_EPOCHS = 256, 32, 1e-3, 12
RL_STEPS, RL_TASKS, RL_RATE = 60, 12, 2e-4
LONGER = 52  # epochs of supervised learning that take as long as 12 of them and 60 steps of RL
SAMPLES = 8


def world_of(seed: int, second_right: float = 0.5) -> Glyphs:
    """Its student calculates on text; at pictures it guesses, says what is on them, or looks twice in vain."""
    return Glyphs(seed, as_text=0.35, captions=0.2, careful=0.0, aha=0.06, second_right=second_right)


# ---- chains


def chains(world: Glyphs, budget: pt.Budget = pt.FULL, least: str = "see") -> list[pt.Demonstration]:
    """A larger model's right chains on pictures, careful or skipping the calculation, as its samples come."""
    shown = Glyphs(world.seed, careful=0.5, skipping=0.5)
    teacher = base(shown, pt.mix(world.seed, "teacher") % 2**31, budget.size(TEACHER))
    tasks = world.tasks(budget.items(2 * CHAINS), "distilled")
    found = right_chains(teacher, tasks, pt.each(is_right), candidates=4, seed=world.seed)
    return [one for one in found.values() if least in chain_text(one)][:CHAINS]


def careful_chains(world: Glyphs, budget: pt.Budget) -> list[pt.Demonstration]:
    return chains(world, budget, " so ")


def wrong_chains(world: Glyphs, budget: pt.Budget) -> list[pt.Demonstration]:
    draw = random.Random(pt.mix(world.seed, "spoilt"))
    found = [one for one in careful_chains(world, budget) if is_readable(one)]
    return [spoil(one, draw) for one in found]


# ---- learning them


def learn_chains(
    policy: pt.TextPolicy,
    demonstrations: Sequence[pt.Demonstration],
    epochs: int,
    seed: int,
    watch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Supervised epochs over the chains; `watch` is called after each, counted from 1."""
    rows = [row for one in demonstrations for row in demonstration_rows(policy, one)]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=SFT_RATE, weight_decay=0.0)
    for epoch in range(epochs):
        random.Random(pt.mix(seed, "epoch", epoch)).shuffle(rows)
        for at in range(0, len(rows), SFT_ROWS):
            pt.update(policy, optimizer, rows[at : at + SFT_ROWS], pt.likelihood, pt.token_mean)
        watch(epoch + 1)
    policy.version = 0


def learn_to_best_epoch(lab: pt.Lab, demonstrations: Sequence[pt.Demonstration], epochs: int) -> int:
    """Leave the policy as it was after its best epoch, by problems kept for the choice; returns the epoch."""
    epochs, every = lab.budget.steps(epochs), 4 if epochs > SFT_EPOCHS else 2
    tasks = lab.world.validation(lab.budget.items(100))
    best: tuple[float, int, dict[str, torch.Tensor]] = (-1.0, 0, {})

    def watch(epoch: int) -> None:
        nonlocal best
        if epoch % every == 0 or epoch == epochs:
            found = lab.evaluate(tasks, pt.each(is_right), samples=4, seed=pt.mix(lab.seed, "validation"))
            if found.reward > best[0]:
                best = found.reward, epoch, {name: value.clone() for name, value in lab.policy.state_dict().items()}

    learn_chains(lab.policy, demonstrations, epochs, lab.seed, watch)
    lab.policy.load_state_dict(best[2])
    return best[1]


# ---- arms


def arm(
    taught: Callable[[Glyphs, pt.Budget], list[pt.Demonstration]] | None = None,
    epochs: int = SFT_EPOCHS,
    rl: bool = False,
    second_right: float = 0.5,
) -> pt.Arm:
    """`taught` None: no cold start. Of the epochs of SFT the best one is taken."""

    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        if taught:
            lab.notes["best epoch"] = float(learn_to_best_epoch(lab, taught(lab.world, lab.budget), epochs))
        return recipe(pt.each(is_right), reference=lab.policy.frozen_copy())

    return pt.trial(
        lambda seed: world_of(seed, second_right),
        build_recipe,
        measures,
        steps=RL_STEPS if rl else 0,
        per_step=RL_TASKS,
        lr=RL_RATE,
        size=STUDENT,
        tasks=lambda lab: lab.world.tasks(600, "rl"),
    )


def measures(lab: pt.Lab) -> dict[str, float]:
    tasks = lab.world.tests(lab.budget.items(300))
    found = lab.evaluate(tasks, pt.each(is_right), samples=SAMPLES, seed=pt.mix(lab.seed, "test"))
    texts = [one.text for one in found.rollouts]
    marks = [value > 0 for values in found.values for value in values]
    return {
        "mean@1": found.reward,
        "greedy": lab.evaluate(tasks, pt.each(is_right), seed=0, temperature=0.0).reward,
        "pass@8": pt.measure.mean_pass_at_k(found.values, SAMPLES),
        "chains": statistics.fmean(map(shows_work, texts)),
        "answered": statistics.fmean(answer(text) is not None for text in texts),
        "reflection": statistics.fmean(map(reflects, texts)),
        "reflection gap": gap(texts, marks),
        "best epoch": 0.0,
        **lab.notes,
    }


ARMS = {
    "base": arm(),
    "RL only": arm(rl=True),
    "SFT only": arm(chains),
    "SFT + RL": arm(chains, rl=True),
    "SFT, as long": arm(chains, LONGER),
    "SFT, careful": arm(careful_chains),
    "SFT, wrong answers": arm(wrong_chains),
    "SFT, wrong answers, + RL": arm(wrong_chains, rl=True),
    "base, second looks help": arm(second_right=1.0),
}
CLAIMS = pt.claims("""
    SFT followed by RL beats SFT alone
        paper: both stages beat SFT-only on MathVision, MathVerse, MathVista and We-Math
        mean@1: SFT + RL > SFT only
    SFT followed by RL beats RL alone
        paper: both stages beat RL-only on MathVision, MathVerse, MathVista and We-Math
        mean@1: SFT + RL > RL only
    SFT followed by RL beats the base model
        paper: 66.3 to 73.4 on MathVista, 62.9 to 70.4 on We-Math (7B)
        mean@1: SFT + RL > base
    SFT alone beats the base model
        paper: SFT-only > base
        mean@1: SFT only > base
    SFT followed by RL beats SFT alone in greedy decoding
        paper: both stages beat SFT-only; here decoded greedily
        greedy: SFT + RL > SFT only
    the base model reflects before any RL
        paper: aha patterns exist in the base model; here in more than 1 % of its replies
        reflection: base > 0.01
    reflection is no sign of being right
        paper: reflection does not predict accuracy: P(right | reflection) - P(right | none), here at most 0.05
        reflection gap: base < 0 + 0.05
    chains with wrong answers still help
        paper: structure matters more than correctness; against the base model
        mean@1: SFT, wrong answers > base
    RL is better after chains with wrong answers than without any
        ours: the structure of chains may be what RL needs
        mean@1: SFT, wrong answers, + RL > RL only
    chains with right answers help more than chains with wrong ones
        ours: the same careful chains with their right answers
        mean@1: SFT, careful > SFT, wrong answers
    careful chains alone do as well as SFT followed by RL
        ours: SFT on the teacher's careful chains only, within 0.05 of SFT on all of its chains and then RL
        mean@1: SFT, careful > SFT + RL - 0.05
    RL is worth its time
        ours: against SFT for as long, at its best epoch
        mean@1: SFT + RL > SFT, as long
    the measure of reflection shows a gap where there is one
        ours: a base model whose second looks are always right
        reflection gap: base, second looks help > base
""")
HEADLINE = pt.Headline("SFT followed by RL beats SFT alone")
# distil, with a teacher that is right, in tests/test_rl_with_cold_start.py
# Stage distil needs a teacher that is right: tests/test_rl_with_cold_start.py.
SMOKE = pt.Smoke(
    """
    laptop
    laptop --no-cold-start
    rl --data {drawings} --image image --max-new 6 --min-pixels 64 --model {qwen2_5_vl}
        --no-cold-start --held-out {drawings}
    sft --data {drawings} --image image --min-pixels 64 --model {qwen3_vl} --response answer
    """,
    {"lab.CHAINS": 8},
)
