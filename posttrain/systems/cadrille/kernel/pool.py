"""Workers side by side: each runs programs within a deadline, and is replaced when one of them ends it."""

from __future__ import annotations

import hashlib
import os
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import posttrain as pt
from posttrain.sandbox import Limits, Program, RaisedError, Session, SessionEnded, open_session, sandbox
from posttrain.sandbox.backends import Zygote
from posttrain.systems.cadrille.kernel.syntax import Refused, check
from posttrain.systems.cadrille.points import Mesh, read_mesh

WORKER = Path(__file__).with_name("worker.py")
PACKAGES = ("cadquery", "manifold3d", "numpy")
LIMITS = Limits(memory_mib=4096, file_mib=1, processes=64)  # manifold3d computes in threads
RECYCLED = 500  # programs after which a worker is replaced
MOST_KEPT = 100_000  # comparisons
KILLED = -9  # by SIGKILL, which no admitted program can send: the machine ran out of memory, or a person did it

Target: TypeAlias = str | Path  # a program, or a file of a mesh


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of a program's solid with its target.

    iou     0 to 1, after both were moved and scaled to the unit cube; None where there is no solid, or where the kernel
            could not intersect two solids
    reason  why there is no solid; empty where there is one
    """

    iou: float | None
    reason: str = ""

    @property
    def valid(self) -> bool:
        return not self.reason


class Kernel:
    """CadQuery behind the sandbox's walls, in `workers` processes; as many as there are cores if not given.

    deadline_s  of one program, by the clock
    Use it in a `with`, or `close` it. Raises ValueError where the packages or the walls are missing.
    """

    def __init__(self, workers: int | None = None, deadline_s: float = 5.0) -> None:
        count = workers or len(os.sched_getaffinity(0))
        self.deadline_s = deadline_s
        self.box = cad_sandbox()
        self.idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self.workers = [Worker(self.box) for _ in range(count)]
        self.threads = ThreadPoolExecutor(count, "kernel")
        self.known: dict[tuple[str, Target], Comparison] = {}
        for worker in self.workers:
            self.idle.put(worker)

    def compare(self, pairs: Sequence[tuple[str, Target]]) -> list[Comparison | pt.Invalid]:
        """Of programs with their targets, in order. Invalid where the machine failed, or the target is no solid."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        fresh = dict(zip(missing, self.threads.map(self._comparison, missing), strict=True))
        found = [fresh[pair] if pair in fresh else self.known[pair] for pair in pairs]
        if len(self.known) + len(fresh) > MOST_KEPT:
            self.known.clear()
        self.known |= {pair: one for pair, one in fresh.items() if isinstance(one, Comparison)}
        return found

    def meshes(self, targets: Sequence[Target]) -> list[Mesh | str | pt.Invalid]:
        """The surface of each, in its own unit; a text says why a program leaves none.

        Raises ValueError naming a file that holds no mesh.
        """
        return list(self.threads.map(self._mesh, targets))

    def _comparison(self, pair: tuple[str, Target]) -> Comparison | pt.Invalid:
        program, target = pair
        said = self._answer(program, partial(Worker.compare, program=program, target=target))
        if isinstance(said, str | pt.Invalid):
            return Comparison(None, said) if isinstance(said, str) else said
        return pt.Invalid(said["fault"]) if "fault" in said else Comparison(said["iou"])

    def _mesh(self, target: Target) -> Mesh | str | pt.Invalid:
        if isinstance(target, Path):
            return read_mesh(target)
        said = self._answer(target, partial(Worker.triangles, program=target))
        return said if isinstance(said, str | pt.Invalid) else Mesh.of(said["vertices"], said["faces"])

    def _answer(self, program: str, ask: Any) -> dict[str, Any] | str | pt.Invalid:
        """What a worker says; a text is why the program leaves no solid, Invalid what was no program's fault.

        A crash counts when it comes in a worker that no other program has used.
        """
        try:
            check(program)
        except Refused as refused:
            return f"refused: {refused}"
        worker = self.idle.get()
        try:
            for attempt in range(2):
                used = worker.done > 0
                try:
                    said = ask(worker, deadline_s=self.deadline_s)
                    return said.get("error", said)
                except SessionEnded as ended:
                    worker.renew()
                    if ended.exit != KILLED and (ended.exit is None or not used or attempt):
                        return f"the program ends the kernel: {ended}"
            return pt.Invalid("the kernel was killed from outside, twice")
        except (RuntimeError, OSError) as error:
            worker.renew()
            return pt.Invalid(f"the kernel failed: {error}")
        finally:
            self.idle.put(worker)

    def close(self) -> None:
        self.threads.shutdown()
        for worker in self.workers:
            worker.renew()
        self.box.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Worker:
    """One process of the kernel, started when it is first asked. `done`: programs that it has run."""

    def __init__(self, box: Zygote) -> None:
        self.box, self.done = box, 0
        self.session: Session | None = None
        self.targets: set[str] = set()  # keys of those that it was given

    def compare(self, program: str, target: Target, deadline_s: float) -> dict[str, Any]:
        key = hashlib.sha256(repr(target).encode()).hexdigest()
        given = None if self.session and key in self.targets else target_value(target)
        said = self._call("compare", program, key, given, deadline_s=deadline_s)
        if "unknown" in said:  # it held too many
            said = self._call("compare", program, key, target_value(target), deadline_s=deadline_s)
        self.targets.add(key)
        return said

    def triangles(self, program: str, deadline_s: float) -> dict[str, Any]:
        return self._call("triangles", program, deadline_s=deadline_s)

    def _call(self, *arguments: Any, deadline_s: float) -> dict[str, Any]:
        """Raises SessionEnded, or RuntimeError when the machine is at fault."""
        if self.session is None or self.done >= RECYCLED:
            self.renew()
            self.session = open_session(self.box, Program(WORKER.read_text()), "answer", LIMITS)
        said = self.session.call(*arguments, wall_s=deadline_s)
        self.done += 1
        if isinstance(said, RaisedError):  # of the worker's own code: what a program raises is an answer
            return {"error": f"{said.name}: {said.message}"}
        return said.value

    def renew(self) -> None:
        """The next call starts a process."""
        if self.session is not None:
            self.session.close()
        self.session, self.done = None, 0
        self.targets.clear()


def cad_sandbox() -> Zygote:
    """Raises ValueError naming the extra, or what this machine lacks."""
    try:
        box = sandbox("zygote", PACKAGES)
    except ValueError as error:
        hint = "" if "lacks" in str(error) else "; pip install 'posttrain[cad]'"
        raise ValueError(f"the geometry kernel needs CadQuery and the sandbox's walls: {error}{hint}") from error
    assert isinstance(box, Zygote)
    return box


def target_value(target: Target) -> dict[str, Any]:
    """As the worker takes it. Raises ValueError for a file that holds no mesh."""
    if isinstance(target, str):
        return {"program": target}
    mesh = read_mesh(target)
    return {"vertices": mesh.vertices.tolist(), "faces": mesh.faces.tolist()}
