"""When a reply ends: by one of the model's end tokens, or by a string that its text has just completed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from posttrain.chat import Chat

BYTES = 4  # most tokens that one character may be split into
REMEMBERED = 64  # lists of stop strings whose tables are kept


class Stops:
    """Tables over the vocabulary, so that text is only decoded after a token that may complete a stop string."""

    def __init__(self, chat: Chat, ends: Iterable[int], size: int, device: torch.device):
        self.chat, self.size, self.device = chat, size, device
        self.ends = self.table(ends)  # [V] bool
        self.completing: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()

    def table(self, ids: Iterable[int]) -> Tensor:
        known = torch.zeros(self.size, dtype=torch.bool)
        known[[i for i in ids if i < self.size]] = True
        return known.to(self.device)

    def may_complete(self, strings: Sequence[str]) -> Tensor:
        """[V] tokens whose text holds a stop string, begins with the rest of one, or is part of a character."""
        key = tuple(sorted(set(strings)))
        if key not in self.completing:
            pieces = self.chat.vocabulary[: self.size]
            longest = max(map(len, pieces))
            whole = {string for string in key if len(string) <= longest}
            rests = {string[-n:] for string in key for n in range(1, min(len(string), longest) + 1)}
            self.completing[key] = self.table(
                i
                for i, piece in enumerate(pieces)
                if "\ufffd" in piece
                or any(piece[:n] in rests for n in range(1, len(piece) + 1))
                or any(piece[at:end] in whole for at in range(len(piece)) for end in range(at + 1, len(piece) + 1))
            )
            if len(self.completing) > REMEMBERED:
                self.completing.popitem(last=False)
        self.completing.move_to_end(key)
        return self.completing[key]

    def contains_stop(self, ids: Sequence[int], strings: Sequence[str]) -> bool:
        """Whether the text of a reply's last tokens holds one of the strings."""
        text = self.chat.decode(ids[-self.reach(strings) :])
        return any(string in text for string in strings)

    def reach(self, strings: Sequence[str]) -> int:
        """Tokens that a string can lie in."""
        return BYTES * max(map(len, strings)) + 1
