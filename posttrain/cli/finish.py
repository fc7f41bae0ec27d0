"""What commands that train have in common: how they begin on several ranks, and how they end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrain.policy.text import TextPolicy


def spread_if_several(policy: TextPolicy) -> None:
    """Lay the policy over the ranks, where `torchrun` has started several."""
    from posttrain import ranks

    if ranks.world() > 1:
        from posttrain.scale.shards import spread

        spread(policy)


def finish(path: Path) -> None:
    """Write the report of a finished run, and say where things are."""
    from posttrain.ranks import primary
    from posttrain.report import write_report

    if primary():
        print(f"model:  {path / 'model'}\nreport: {write_report(path)}", file=sys.stderr)
