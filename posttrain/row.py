"""From played episodes to the flat decisions that losses see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from posttrain.core import Batch, Group, Message, Policy, Rollout, Row, Score, Turn
from posttrain.data import Demonstration
from posttrain.policy.text import TextPolicy


class Packer(Protocol):
    """Whatever knows which turns continue one another: every policy does."""

    def extends(self, last: Turn, turn: Turn) -> bool: ...


def rows(policy: Packer, rollout: Rollout, advantage: Tensor, group: int = 0, score: Score | None = None) -> list[Row]:
    """Pack a rollout's turns: a turn that continues the last one joins its row, any other opens a new row.

    turns   (P1 C1) (P1 C1 E1 C2) (P2 C3)      P prompt, C completion, E environment
    rows    [P1 C1 E1 C2] [P2 C3]              with credit on C1 C2 and on C3

    Raises ValueError when there is not one advantage per decision.
    """
    if len(advantage) != rollout.decisions:
        raise ValueError(
            f"task {rollout.task.key!r}: {rollout.decisions} decisions but {len(advantage)} advantages; "
            "an advantage returns one [N] tensor per rollout, over the decisions of all its turns"
        )
    packed: list[Row] = []
    start = 0
    for turn in rollout.turns:
        stop = start + len(turn.reply.logp)
        credit, start = advantage[start:stop], stop
        if packed and policy.extends(packed[-1].turns[-1], turn):
            packed[-1] = Row([*packed[-1].turns, turn], torch.cat([packed[-1].advantage, credit]), group, score)
        else:
            packed.append(Row([turn], credit, group, score))
    return [row for row in packed if len(row.advantage)]


def demonstration_rows(policy: TextPolicy, demonstration: Demonstration) -> list[Row]:
    """A row (or several, where the template rewrites the past) in which every assistant message is learned."""
    return reply_rows(policy, demonstration.messages)


def reply_rows(policy: TextPolicy, messages: Sequence[Message], start: int = 0) -> list[Row]:
    """The same of the assistant messages from `start` on; those before are only read."""
    rows: list[Row] = []
    said = list(messages)
    for i, message in enumerate(said):
        if i < start or message["role"] != "assistant":
            continue
        turn = policy.demonstrate(said[:i], message)
        said[i] = {**message, "reply": turn.reply}
        if rows and policy.extends(rows[-1].turns[-1], turn):
            turns: list[Turn] = [*rows[-1].turns, turn]
            rows[-1] = Row(turns, torch.ones(sum(len(t.reply.logp) for t in turns)))
        else:
            rows.append(Row([turn], torch.ones(len(turn.reply.logp))))
    return rows


def rows_of(policy: Packer, rollout: Rollout, turns: Sequence[Turn]) -> list[Row]:
    """The rows of some turns without credit, for scoring them."""
    part = Rollout(rollout.task, list(turns))
    return rows(policy, part, torch.zeros(part.decisions))


def flatten(rows: Sequence[Row], logp_old: Tensor | None = None, logp_ref: Tensor | None = None) -> Batch:
    """The decisions of rows end to end. Without `logp_old`, the sampler's own log-probability stands in for it."""
    sampled = torch.cat([row.logp for row in rows])
    return Batch(
        logp_sampler=sampled,
        logp_old=sampled if logp_old is None else logp_old,
        advantage=torch.cat([row.advantage for row in rows]).float(),
        row=torch.repeat_interleave(torch.tensor([len(row.advantage) for row in rows])),
        logp_ref=logp_ref,
        scores=tuple(row.score for row in rows),
    )


def micro_batches(policy: Policy, rows: Sequence[Row], tokens: int) -> list[list[int]]:
    """Indices of rows, in bins that take at most `tokens` together. Changes memory, never the gradient.

    Rows of a group stay together where that saves tokens (a prompt they share), rows of one length where that does.
    """
    if not rows:
        return []

    def size(piece: Sequence[int]) -> int:
        return policy.size([rows[i] for i in piece])

    by_length = sorted(range(len(rows)), key=lambda i: -size([i]))
    by_group = sorted(by_length, key=lambda i: rows[i].group)
    return min(
        (split_to_size(order, size, tokens) for order in (by_group, by_length)), key=lambda bins: sum(map(size, bins))
    )


def split_to_size(order: Sequence[int], size: Callable[[Sequence[int]], int], most: int) -> list[list[int]]:
    """Runs of `order` of a size of at most `most`, or of one: whatever is too large is cut in half."""
    if len(order) == 1 or size(order) <= most:
        return [list(order)]
    half = len(order) // 2
    return [*split_to_size(order[:half], size, most), *split_to_size(order[half:], size, most)]


def row_logps(policy: Policy, rows: Sequence[Row], micro_tokens: int = 16384) -> list[Tensor]:
    """[B][N] log-probabilities of every row under the current parameters, without gradients, on the CPU."""
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    with torch.no_grad():
        for piece in micro_batches(policy, rows, micro_tokens):
            logp = policy.density([rows[i] for i in piece]).logp.cpu()
            for i, part in zip(piece, logp.split([len(rows[i].advantage) for i in piece]), strict=True):
                out[i] = part
    return out


def group_logps(policy: Policy, group: Group, micro_tokens: int = 16384) -> list[Tensor]:
    """[G][N] the same for every rollout of a group, over all of its decisions in order."""
    packed = [rows_of(policy, rollout, rollout.turns) for rollout in group]
    left = iter(row_logps(policy, [row for part in packed for row in part], micro_tokens))
    return [torch.cat([torch.zeros(0), *[next(left) for _ in part]]) for part in packed]
