"""What a step of a run takes through the model: the micro-batches that it will be cut into, before there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from posttrain.chat import Tokens
from posttrain.core import Ask, Reply, Row, Task, Turn
from posttrain.data import Demonstration, Pair
from posttrain.policy.activations import Group, Piece, piece_of
from posttrain.policy.text import TextPolicy, length_of
from posttrain.policy.value import RewardModel
from posttrain.preference import pair_batches
from posttrain.preference import row as pair_row
from posttrain.row import demonstration_rows, micro_batches, split_to_size
from posttrain.stream import ShuffledSource

if TYPE_CHECKING:
    from posttrain.recipe import Recipe
    from posttrain.run.settings import Run

STEPS = 8  # whose micro-batches are worked out
ROWS = 4096  # of these steps together
ITEMS = 2048  # of the data that are tokenized, evenly spread, where there are more


@dataclass(frozen=True, slots=True)
class Decoded:
    """What is sampled in a step."""

    prompts: tuple[int, ...]  # [P] tokens
    samples: int  # of each
    replies: tuple[int, ...]  # [P] most tokens of a reply


@dataclass(frozen=True, slots=True)
class Step:
    """A step's micro-batches, over all of its updates, and what was sampled for it."""

    pieces: tuple[Piece, ...]
    decoded: Decoded | None = None

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of items: of prompts, or of whole rows."""

    counted: int  # items that were tokenized
    mean: float
    most: int


def lengths(policy: TextPolicy | RewardModel, items: Sequence[Any]) -> Lengths:
    """Of at most `ITEMS` items, evenly spread over all of them."""
    some = items[:: -(-len(items) // ITEMS)]
    sizes = [size for item in some for size in item_sizes(policy, item)]
    return Lengths(len(some), sum(sizes) / len(sizes), max(sizes))


def item_sizes(policy: TextPolicy | RewardModel, item: Any) -> list[int]:
    """Tokens of a task's prompt, of the rows of a demonstration or a pair, or of a row."""
    if isinstance(item, Task):
        return [len(policy.chat.prompt(item.prompt)[0])]
    if isinstance(policy, RewardModel):
        return [len(policy.ids(item.prompt, text)) for text in (item.chosen, item.rejected)]
    return [length_of(row) for row in item_rows(policy, item)]


def item_rows(policy: TextPolicy, item: Any) -> list[Row]:
    if isinstance(item, Demonstration):
        return demonstration_rows(policy, item)
    if isinstance(item, Pair):
        return [pair_row(policy, item, text) for text in (item.chosen, item.rejected)]
    return [item]


def steps(policy: TextPolicy | RewardModel, items: Sequence[Any], recipe: Recipe | None, run: Run) -> list[Step]:
    """The first steps of the run, in the order in which a shuffled source will hand out its items.

    Of tasks, with every reply as long as it may be.
    """
    rows_of_item = recipe.samples if recipe else 2
    count = max(min(run.steps, STEPS, ROWS // (run.tasks * rows_of_item)), 1)
    source = ShuffledSource(range(len(items)), run.seed)
    batches = [[items[i] for i in source.take(run.tasks)] for _ in range(count)]
    return [step(policy, batch, recipe, run) for batch in batches]


def step(policy: TextPolicy | RewardModel, batch: Sequence[Any], recipe: Recipe | None, run: Run) -> Step:
    if isinstance(policy, RewardModel):
        return Step(tuple(scored_pieces(policy, batch, run.micro_tokens)))
    if isinstance(batch[0], Pair):
        pieces = pair_batches(policy, batch, run.micro_tokens)
        return Step(
            tuple(piece_of(policy, [row for pair in part for row in item_rows(policy, pair)]) for part in pieces)
        )
    if isinstance(batch[0], Task):
        assert recipe is not None
        return sampled_step(policy, batch, recipe, run)
    rows = [row for item in batch for row in item_rows(policy, item)]
    return Step(tuple(cut(policy, rows, run.micro_tokens)))


def sampled_step(policy: TextPolicy, batch: Sequence[Task], recipe: Recipe, run: Run) -> Step:
    prompts = [policy.chat.prompt(task.prompt)[0] for task in batch]
    most = [min(policy.sampling.max_new, policy.context - len(prompt)) for prompt in prompts]
    rows = [
        longest_row(policy, task, prompt, new, group)
        for group, (task, prompt, new) in enumerate(zip(batch, prompts, most, strict=True))
        for _ in range(recipe.samples)
    ]
    shares = [rows[i :: recipe.updates] for i in range(min(recipe.updates, len(rows)))]
    pieces = [one for share in shares for one in full(policy, share, run.micro_tokens)]
    return Step(tuple(pieces), Decoded(tuple(map(len, prompts)), recipe.samples, tuple(most)))


def longest_row(policy: TextPolicy, task: Task, prompt: tuple[int, ...], new: int, group: int) -> Row:
    """A rollout of one turn whose reply has `new` tokens."""
    asked = policy.chat.read_parts(task.prompt) if hasattr(policy.chat, "read_parts") else task.prompt  # type: ignore[attr-defined]
    tokens = Tokens(prompt, (0,) * new, asked, "", "", policy.chat.fingerprint)
    nothing = torch.zeros(1).expand(new)
    return Row([Turn(Ask(task.prompt), Reply("", nothing, tokens))], nothing, group)


def cut(policy: TextPolicy, rows: Sequence[Row], micro_tokens: int) -> Iterator[Piece]:
    for part in micro_batches(policy, rows, micro_tokens):
        yield piece_of(policy, [rows[i] for i in part])


def full(policy: TextPolicy, rows: Sequence[Row], micro_tokens: int) -> Iterator[Piece]:
    """Micro-batches as full as they may be: rows of unknown lengths are cut in half at any size from half of that."""
    left = list(rows)
    while left:
        count = 1
        while count < len(left) and policy.size(left[: count + 1]) <= micro_tokens:
            step = 1
            while policy.size(left[: count + 2 * step]) <= micro_tokens and count + 2 * step <= len(left):
                step *= 2
            count = min(count + step, len(left))
        yield piece_of(policy, left[:count])
        left = left[count:]


def scored_pieces(model: RewardModel, pairs: Sequence[Pair], micro_tokens: int) -> Iterator[Piece]:
    """Those of a reward model, padded."""
    most = [max(item_sizes(model, pair)) for pair in pairs]
    for part in split_to_size(range(len(pairs)), lambda some: 2 * len(some) * max(most[i] for i in some), micro_tokens):
        width = max(most[i] for i in part)
        yield Piece(2 * len(part) * width, 0, tuple(Group(0, (width,)) for _ in range(2 * len(part))))
