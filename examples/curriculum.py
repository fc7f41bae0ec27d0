"""A curriculum is a source of tasks that chooses: here, small numbers first. The run saves how far it got."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import posttrain as pt
from posttrain import tiny
from posttrain.seeding import mix


class EasyFirst:
    """Draws from a window over the tasks, sorted from easy to hard, that grows with every task drawn."""

    def __init__(self, tasks: Sequence[pt.Task], start: int = 50, growth: float = 0.5):
        self.items = sorted(tasks, key=lambda task: abs(int(task.truth)))
        self.start, self.growth, self.drawn = start, growth, 0

    def take(self, count: int) -> list[pt.Task]:
        window = min(self.start + int(self.growth * self.drawn), len(self.items))
        taken = [self.items[mix("curriculum", self.drawn + i) % window] for i in range(count)]
        self.drawn += count
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = state["drawn"]


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    policy = pt.text("tiny", max_new=32)
    source = EasyFirst(tiny.tasks(500))
    run = pt.Run("runs/curriculum", steps=steps, lr=5e-4, overwrite=True)
    pt.train(policy, source, pt.grpo(pt.grade.exact), run)
