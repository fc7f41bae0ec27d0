"""Repetition self-repair at decoding: a loop is cut, the model is told of it, and goes on.

When the last tokens of a reply are three copies of one n-gram, the last copy is rolled back, "Wait, I am repeating
myself." is put in its place, and sampling continues; at most twice. (The paper says that loops are detected locally and
broken by an injected prompt; the rule is ours.)

What was put in was not sampled, so such replies have no log-probabilities and are not trained on as they are: they
serve evaluation, and as demonstrations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch

import posttrain as pt
from posttrain.episode import ordered_replies
from posttrain.policy.fast.generate import SampleRequest

NOTE = " Wait, I am repeating myself."
WIDTHS = range(8, 65)  # tokens of an n-gram
COPIES, REPAIRS = 3, 2


def loop(ids: Sequence[int], widths: Sequence[int] = WIDTHS) -> tuple[int, int] | None:
    """Where the first loop of a reply has come round `COPIES` times: the position after it, and its width."""
    for end in range(COPIES * min(widths), len(ids) + 1):
        for n in widths:
            if COPIES * n > end:
                break
            last = ids[end - n : end]
            if all(ids[end - (k + 1) * n : end - k * n] == last for k in range(1, COPIES)):
                return end, n
    return None


@dataclass
class Repaired:
    """A text policy whose loops are broken, as a sampler. `repairs` counts the replies that were."""

    policy: pt.TextPolicy
    widths: Sequence[int] = WIDTHS
    repairs: int = 0
    note: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        self.note = tuple(self.policy.chat.encode(NOTE))

    def gather_parameters(self) -> AbstractContextManager[None]:
        return self.policy.gather_parameters()

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        return ordered_replies(self.stream(asks))

    def stream(self, asks: Sequence[pt.Ask]) -> Iterator[tuple[int, pt.Reply]]:
        wanted = {
            i: self.policy.sample_request(ask, self.policy.chat.prompt(ask.messages)[0]) for i, ask in enumerate(asks)
        }
        said: dict[int, tuple[int, ...]] = dict.fromkeys(wanted, ())
        for attempt in range(REPAIRS + 1):
            again: dict[int, SampleRequest] = {}
            order = [i for i in wanted if wanted[i].max_new > 0]
            for i in wanted.keys() - set(order):
                yield i, self.reply(asks[i], said[i], "length")
            for k, got in self.policy.sample_tokens([wanted[i] for i in order]):
                i = order[k]
                found = loop(got.ids, self.widths) if attempt < REPAIRS else None
                if not found:
                    yield i, self.reply(asks[i], said[i] + got.ids, got.stop)
                    continue
                end, n = found
                kept = got.ids[: end - n] + self.note
                said[i] += kept
                left = wanted[i].max_new - len(kept)
                seed = pt.mix(wanted[i].seed, "repair", attempt)
                again[i] = replace(wanted[i], prompt=wanted[i].prompt + kept, max_new=max(left, 0), seed=seed)
            self.repairs += len(again) if attempt == 0 else 0
            wanted = again
            if not wanted:
                return

    def reply(self, ask: pt.Ask, ids: tuple[int, ...], stop: str) -> pt.Reply:
        return pt.Reply(self.policy.chat.decode(ids), torch.zeros(0), None, stop)  # type: ignore[arg-type]
