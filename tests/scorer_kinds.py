"""A model that needs no torch, for tests of the processes that models run in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from posttrain.serve.scorer import Kind


def lengths(payload: Any) -> Iterator[int]:
    for text in payload["texts"]:
        yield len(text)


LENGTHS: Kind[Any] = Kind(
    "ruler",
    "scorer_kinds:LENGTHS",
    lambda name, device: name,
    lambda model: {"process": os.getpid()},
    lambda model: {"lengths": lengths},
    lambda connection: connection,
)
