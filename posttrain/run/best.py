"""The best model so far, by a held-out measure, and when nothing better is to be expected."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.core import Metrics

PREFIX = "held_out/"


class Best:
    """The best value of a held-out measure in the lines of metrics, and how many evaluations came after it.

    measure  a name under `held_out/`, such as `reward` or `easy/reward`; one that ends with `loss` is better when less
    """

    def __init__(self, measure: str, history: Sequence[Metrics] = ()):
        self.name = measure if measure.startswith(PREFIX) else PREFIX + measure
        self.sign = -1 if self.name.endswith("loss") else 1
        self.value: float | None = None
        self.since = 0  # evaluations after the best
        for line in history:
            self.add(line)

    def add(self, found: Metrics) -> bool:
        """Whether an evaluation is the best so far; False also for a line without one.

        Raises ValueError when there was an evaluation that has no such measure.
        """
        measured = [name for name in found if name.startswith(PREFIX)]
        if not measured:
            return False
        if self.name not in found:
            known = ", ".join(name.removeprefix(PREFIX) for name in measured)
            raise ValueError(f"`keep_best={self.name.removeprefix(PREFIX)}`: it is not measured; there are {known}")
        better = self.value is None or self.sign * (found[self.name] - self.value) > 0
        self.value, self.since = (found[self.name], 0) if better else (self.value, self.since + 1)
        return better
