"""The arms: a student that guesses at pictures and calculates on text, and a teacher's chains on pictures."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from posttrain.data import Demonstration
from posttrain.descent import update
from posttrain.episode import assistant
from posttrain.evaluation import evaluate
from posttrain.lab.world.glyphs import BASE, Glyphs, Problem, answer, applied, careful, right, works
from posttrain.lab.world.words import Size, base
from posttrain.loss import likelihood, token_mean
from posttrain.measure import mean_pass_at_k
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.reward import each
from posttrain.row import demonstration_rows
from posttrain.seeding import mix
from posttrain.step import train_in_memory
from posttrain.systems.rl_with_cold_start.reflection import gap, reflects
from posttrain.systems.rl_with_cold_start.styles import kept

STUDENT = Size(hidden=64, layers=2, steps=300)
TEACHER = Size(hidden=96, layers=3, steps=250)
CHAINS, SFT_ROWS, SFT_RATE, SFT_EPOCHS = 256, 32, 1e-3, 12
RL_STEPS, RL_TASKS, RL_RATE = 60, 12, 2e-4
LONGER = 52  # epochs of supervised learning that take as long as 12 of them and 60 steps of RL
SAMPLES = 8


def world_of(seed: int, second_right: float = 0.5) -> Glyphs:
    """Calculates on text; of pictures says what is on them, guesses, and now and then looks again in vain."""
    return Glyphs(seed, as_text=0.35, captions=0.2, careful=0.0, aha=0.06, second_right=second_right)


def base_of(world: Glyphs, quick: bool = False) -> TextPolicy:
    return base(world, world.seed, replace(STUDENT, steps=10) if quick else STUDENT)


def chains(world: Glyphs, least: str = "see", quick: bool = False) -> list[Demonstration]:
    """A larger model's right chains on pictures, careful or skipping the calculation, as its samples come."""
    if quick:
        shown = Glyphs(world.seed, careful=1.0)
        return [shown.demonstration(random.Random(i)) for i in range(8)]
    teacher = base(Glyphs(world.seed, careful=0.5, skipping=0.5), mix(world.seed, "teacher") % 2**31, TEACHER)
    found = kept(teacher, world.tasks(2 * CHAINS, "distilled"), each(right), candidates=4, seed=world.seed)
    return [one for one in found.values() if least in said(one)][:CHAINS]


def said(one: Demonstration) -> str:
    return str(one.messages[-1]["content"])


def spoilt(one: Demonstration, draw: random.Random) -> Demonstration:
    """The careful chain with a mistake in one of its steps, and the wrong answer that follows from it."""
    problem = read(said(one))
    first, last = problem.results
    choices = [(wrong, applied(problem.signs[1], wrong, problem.numbers[2])) for wrong in range(BASE) if wrong != first]
    found = draw.choice([(first, (last + draw.randint(1, BASE - 1)) % BASE), draw.choice(choices)])
    if found[1] == last:  # two mistakes that cancel
        return spoilt(one, draw)
    return Demonstration((*one.messages[:-1], assistant(careful(problem, found))))


def read(chain: str) -> Problem:
    """The problem of a careful chain, by what it says it sees and calculates."""
    _, a, b, c, _, _, first, _, _, _, _, _, second, *_ = chain.split()
    return Problem((int(a), int(b), int(c)), (first, second))


def learned(
    policy: TextPolicy,
    demonstrations: Sequence[Demonstration],
    epochs: int,
    seed: int,
    watch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Supervised epochs over the chains; `watch` is called after each, counted from 1."""
    rows = [row for one in demonstrations for row in demonstration_rows(policy, one)]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=SFT_RATE, weight_decay=0.0)
    for epoch in range(epochs):
        random.Random(mix(seed, "epoch", epoch)).shuffle(rows)
        for at in range(0, len(rows), SFT_ROWS):
            update(policy, optimizer, rows[at : at + SFT_ROWS], likelihood, token_mean)
        watch(epoch + 1)
    policy.version = 0


def best_learned(
    policy: TextPolicy, world: Glyphs, demonstrations: Sequence[Demonstration], epochs: int, every: int, quick: bool
) -> int:
    """The epoch that is best on problems kept for the choice; the policy is left as it was after it."""
    tasks = world.validation(10 if quick else 100)
    best: tuple[float, int, dict[str, torch.Tensor]] = (-1.0, 0, {})

    def watch(epoch: int) -> None:
        nonlocal best
        if epoch % every == 0 or epoch == epochs:
            found = evaluate({"policy": policy}, tasks, each(right), samples=4, seed=mix(world.seed, "validation"))
            if found.reward > best[0]:
                best = found.reward, epoch, {name: value.clone() for name, value in policy.state_dict().items()}

    learned(policy, demonstrations, epochs, world.seed, watch)
    policy.load_state_dict(best[2])
    return best[1]


def reinforced(policy: TextPolicy, world: Glyphs, recipe: Callable[..., Recipe], quick: bool) -> None:
    made = recipe(each(right), reference=policy.frozen())
    steps, per_step = (1, 2) if quick else (RL_STEPS, RL_TASKS)
    train_in_memory(policy, world.tasks(600, "rl"), made, steps=steps, per_step=per_step, lr=RL_RATE, seed=world.seed)


def measured(policy: TextPolicy, world: Glyphs, quick: bool) -> dict[str, float]:
    tasks = world.tests(10 if quick else 300)
    found = evaluate({"policy": policy}, tasks, each(right), samples=SAMPLES, seed=mix(world.seed, "test"))
    texts = [one.text for group in found.groups for one in group]
    marks = [value > 0 for values in found.values for value in values]
    policy.sampling = replace(policy.sampling, temperature=0.0)
    greedy = evaluate({"policy": policy}, tasks, each(right))
    policy.sampling = replace(policy.sampling, temperature=1.0)
    return {
        "mean@1": found.reward,
        "greedy": greedy.reward,
        "pass@8": mean_pass_at_k(found.values, SAMPLES),
        "chains": statistics.fmean(map(works, texts)),
        "answered": statistics.fmean(answer(text) is not None for text in texts),
        "reflection": statistics.fmean(map(reflects, texts)),
        "reflection gap": gap(texts, marks),
    }
