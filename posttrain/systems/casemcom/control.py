"""The control: a single agent of deep reinforcement learning, one categorical policy over the choices of all users.

It sees the channels and the budget; with `context` also what the gate is told in words, as numbers: tasks by their
place in a list, priorities, tolerances. So what the gate gains over it is what language is worth, and no more context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import posttrain as pt
from posttrain.systems.casemcom.slots import Slot

READER = "reader.json"
DB, MS, SYMBOLS = 20.0, 30.0, 100.0  # that count as one


@dataclass(frozen=True, slots=True)
class Reader:
    """What the agent sees of a slot.

    tasks    that it knows by name; of any other it sees that it is none of these
    context  it sees more than channels and budget
    """

    tasks: tuple[str, ...]
    users: int
    sizes: tuple[int, ...]
    context: bool = True

    @property
    def features(self) -> int:
        return 1 + self.users * (1 + self.context * (2 + len(self.tasks)))

    def state(self, slot: Slot) -> list[float]:
        state = [slot.symbols / SYMBOLS]
        for user in slot.users:
            state.append(user.snr_db / DB)
            if self.context:
                state += [float(user.priority == "high"), math.log(user.latency_ms / MS)]
                state += [len(self.tasks) ** 0.5 * (user.task == task) for task in self.tasks]  # of unit variance
        return state

    def slot_tasks(self, slots: Sequence[Slot]) -> list[pt.Task[Slot]]:
        """Raises ValueError naming the slot whose users or sizes are not those of the agent."""
        for one in slots:
            if len(one.users) != self.users or one.sizes != self.sizes:
                raise ValueError(
                    f"the slot {one.key!r} has {len(one.users)} users and the sizes {one.sizes}; the agent decides for "
                    f"{self.users} and {self.sizes}"
                )
        return [pt.Task(one.key, (pt.show(state=self.state(one), budget=one.symbols),), one) for one in slots]

    def network(self, hidden: Sequence[int] = (64,)) -> pt.Categorical:
        """One choice of an expert for each user, which together never cost more than the budget."""
        costs = [[*self.sizes, *self.sizes] for _ in range(self.users)]
        return pt.Categorical(self.features, [len(costs[0])] * self.users, hidden, costs=costs)

    def save(self, folder: Path) -> None:
        pt.write_json(folder / READER, asdict(self))


def reader_of(slots: Sequence[Slot], context: bool) -> Reader:
    """For slots like these: their tasks, users and sizes."""
    tasks = sorted({user.task for one in slots for user in one.users})
    return Reader(tuple(tasks), len(slots[0].users), slots[0].sizes, context)


def load_reader(folder: str | Path) -> Reader:
    """What `Reader.save` wrote. Raises ValueError for a folder without it."""
    path = Path(folder) / READER
    if not path.is_file():
        raise ValueError(
            f"`control={folder}`: the folder holds no agent ({READER}); give that of a run of stage control"
        )
    found = pt.read_json(path)
    return Reader(tuple(found["tasks"]), found["users"], tuple(found["sizes"]), found["context"])
