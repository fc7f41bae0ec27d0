"""How long a chain should be, task by task: the middle half of the lengths of the teacher's right chains.

They are fitted before reinforcement, in tokens of the policy's tokenizer, and kept as JSON.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import posttrain as pt
from posttrain.records import records
from posttrain.systems.emotion_o1.reply import stated

Tokens: TypeAlias = "Callable[[str], Sequence[Any]]"  # the tokens of a chain


@dataclass(frozen=True)
class Band:
    """Quartiles of lengths in tokens, of so many chains."""

    low: float
    median: float
    high: float
    chains: int

    def closeness(self, length: float) -> float:
        """1 between the quartiles; beyond them exp(-distance / median), the median being at least 1.

        Ours: the paper's formula is not public.
        """
        away = max(self.low - length, length - self.high, 0.0)
        return math.exp(-away / max(self.median, 1.0))


Bands: TypeAlias = Mapping[str, Band]  # by task


def band(lengths: Sequence[float]) -> Band:
    """Of at least one length; quartiles are interpolated, the shortest and the longest being quantiles 0 and 1."""
    if len(lengths) == 1:
        return Band(lengths[0], lengths[0], lengths[0], 1)
    low, median, high = statistics.quantiles(lengths, n=4, method="inclusive")
    return Band(low, median, high, len(lengths))


DISTIL = "distil chains for it, or give `length_weight=0`"


def fit_bands(lengths: Mapping[str, Sequence[float]], tasks: Iterable[str], remedy: str = DISTIL) -> dict[str, Band]:
    """The band of each task. Raises ValueError naming a task that has no chains, with the remedy."""
    return {task: band(lengths[task]) for task in require_chains(lengths, tasks, remedy)}


def require_chains(found: Mapping[str, Any], tasks: Iterable[str], remedy: str = DISTIL) -> list[str]:
    wanted = sorted(set(tasks))
    for task in wanted:
        if not found.get(task):
            raise ValueError(
                f"the task {task!r} has no chain with the right label, only {', '.join(sorted(found)) or 'none'}: "
                f"{remedy}"
            )
    return wanted


def tokens_of(policy: pt.TextPolicy) -> Tokens:
    """The policy's tokens of a text, even of one that is no valid Unicode."""
    return lambda text: policy.chat.encode(text.encode("utf-8", "replace").decode())


def chain_lengths(rows: Iterable[Mapping[str, Any]], tokens: Tokens) -> dict[str, list[float]]:
    """Lengths of chains by task, of rows with `task`, `label` and a `response`, which is in form."""
    lengths: dict[str, list[float]] = {}
    for row in rows:
        said = stated(str(row["response"]), [str(row["label"])])
        if said is not None:
            lengths.setdefault(str(row["task"]), []).append(len(tokens(said.chain)))
    return lengths


# ---- as files


def write_bands(path: Path, bands: Bands, policy: pt.TextPolicy) -> None:
    pt.write_json(
        path, {"tokenizer": policy.chat.fingerprint, "bands": {task: asdict(one) for task, one in bands.items()}}
    )


def read_bands(file: str, policy: pt.TextPolicy, tasks: Iterable[str]) -> dict[str, Band]:
    """The bands of a bands.json, or of the chains of a chains.jsonl, in the policy's tokens.

    Raises ValueError for a file that is neither, for bands in another tokenizer's tokens, and naming a task without.
    """
    path = Path(file).expanduser()
    if path.suffix != ".json":
        rows = []
        for place, row in records(path):
            if not {"task", "label", "response"} <= set(row):
                raise ValueError(f"{place}: a chain has `task`, `label` and `response`, and this one {', '.join(row)}")
            rows.append(row)
        return fit_bands(chain_lengths(rows, tokens_of(policy)), tasks)
    if not path.is_file():
        raise ValueError(f"`bands={file}`: there is no such file; stage distil writes it")
    try:
        kept = pt.read_json(path)
        bands = {task: Band(**one) for task, one in kept["bands"].items()}
        fingerprint = kept["tokenizer"]
        if not all(math.isfinite(value) for one in bands.values() for value in vars(one).values()):
            raise ValueError("a length is not finite")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`bands={file}`: no bands of stage distil: {type(error).__name__} {error}") from error
    if fingerprint != policy.chat.fingerprint:
        raise ValueError(f"`bands={file}`: its lengths are in another tokenizer's tokens; give its chains.jsonl")
    return {task: bands[task] for task in require_chains(bands, tasks)}
