"""Was the contrast needed at a token, and what did the gate's choice earn? The reward of classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEEDED, NOT_NEEDED, NEITHER = 1, 0, -1
FIELDS = ("features", "action", "label", "reward", "done")  # of transitions


@dataclass(frozen=True, slots=True)
class Pay:
    """What a choice earns; positive: the contrast was needed. Numbers of the release, as they were reported to us."""

    needed_and_taken: float = 1.0
    needed_and_missed: float = -4.0
    taken_in_vain: float = -1.0
    rightly_left: float = 1.0


def labels(plain: Tensor, other: Tensor, truth: Tensor) -> Tensor:
    """[N] of the tokens that the model itself and the contrast would say, and the right ones: was a contrast needed?

    Where both are right it was not (ours; as reported, the release calls it needed); where neither is, `NEITHER`.
    """
    found = torch.full_like(truth, NEITHER)
    found[(plain != truth) & (other == truth)] = NEEDED
    found[plain == truth] = NOT_NEEDED
    return found


def token_rewards(taken: Tensor, label: Tensor, pay: Pay = Pay()) -> Tensor:
    """[N] bool, [N] -> [N]: the choice that was *taken*, against the label; nothing where neither token is right."""
    needed = torch.where(taken, pay.needed_and_taken, pay.needed_and_missed)
    vain = torch.where(taken, pay.taken_in_vain, pay.rightly_left)
    return torch.where(label == NEEDED, needed, torch.where(label == NOT_NEEDED, vain, torch.zeros_like(vain)))


def at_the_end(rewards: Tensor) -> Tensor:
    """[N] -> [N] the sum at the last decision: the reward of the sequence."""
    paid = torch.zeros_like(rewards)
    paid[-1:] = rewards.sum()
    return paid


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """Decisions of many sequences end to end, for learning from them later. T transitions."""

    features: Tensor  # [T, F]
    action: Tensor  # [T] int, 1 contrasts
    label: Tensor  # [T] int
    reward: Tensor  # [T] NaN where it is not known
    done: Tensor  # [T] bool, the last of its sequence

    def __len__(self) -> int:
        return len(self.action)

    def next_features(self, index: Tensor) -> Tensor:
        """[B, F] of the state after each; after the last of a sequence any, since nothing is expected of it."""
        return self.features[(index + 1).clamp(max=len(self) - 1)]


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """Raises ValueError when there is nothing."""
    if not parts:
        raise ValueError("there is no decision to learn from: every reply was empty, or no rollout could be graded")
    return Transitions(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))


def sequence(
    features: Tensor, taken: Tensor, label: Tensor, *, terminal: bool = True, score: float | None = None
) -> Transitions:
    """The transitions of one sequence: its reward at the last token (published), or each token's own.

    `score`, where a grader gave one, is the reward of the sequence in place of the sum over labels.
    """
    paid = token_rewards(taken, label)
    paid = at_the_end(paid) if terminal else paid
    if score is not None:
        paid = torch.zeros_like(paid)
        paid[-1:] = score
    done = torch.zeros(len(taken), dtype=torch.bool)
    done[-1:] = True
    return Transitions(features, taken.long(), label, paid, done)
