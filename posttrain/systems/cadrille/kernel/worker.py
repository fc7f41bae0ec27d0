"""What runs inside the sandbox: the source of a session that calls `answer`. The trainer never imports it.

A policy's program gets a namespace of its own with `cq` and no builtins, so that it cannot reach what is here. Solids
are kept by a key, so that a group's target is built once.
"""

from __future__ import annotations

import ast
from collections import OrderedDict
from typing import Any

import cadquery as cq
import manifold3d
import numpy as np

MOST_TARGETS = 200
TOLERANCE, ANGLE = 0.001, 0.1  # of the triangles: largest distance in the program's unit, and radians
EXCESS = 1.001  # by which a common volume may be larger than the smaller solid, from rounding

cq.Shape._bool_op.__defaults__ = (False,)  # `parallel`: a program may have no threads, and OCCT would wait for them
targets: OrderedDict[str, Any] = OrderedDict()  # by key: a shape, or a manifold, within the unit cube


class NoSolid(ValueError):
    """The program ran, and what it left in `r` is no solid."""


def answer(work: str, *arguments: Any) -> dict[str, Any]:
    """`compare` or `triangles` of these arguments; {"error": why} for a program that leaves no solid."""
    done = {"compare": compare, "triangles": triangles}[work]
    try:
        return done(*arguments)
    except Exception as error:  # of the program, or of the kernel at its behest
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def compare(program: str, key: str, target: dict[str, Any] | None) -> dict[str, Any]:
    """{"iou": common volume / volume of the union}, each solid moved and scaled to the unit cube.

    The IoU is None where the kernel cannot intersect two valid solids. {"fault": why} is no fault of the program,
    {"unknown": key} asks for a target that is not held.

    target  {"program": ...}, or {"vertices": [V, 3], "faces": [F, 3]}; None where the key is known
    """
    if target is not None:
        try:
            targets[key] = mesh_in_cube(**target) if "faces" in target else in_cube(solid(target["program"]))
        except Exception as error:
            return {"fault": f"the target: {type(error).__name__}: {error}"[:300]}
        while len(targets) > MOST_TARGETS:
            targets.popitem(last=False)
    if key not in targets:
        return {"unknown": key}
    targets.move_to_end(key)
    made, wanted = in_cube(solid(program)), targets[key]
    try:
        if isinstance(wanted, cq.Shape):
            return {"iou": iou(made.Volume(), wanted.Volume(), made.intersect(wanted).Volume())}
        made = manifold(*mesh(made))
        return {"iou": iou(made.volume(), wanted.volume(), (made ^ wanted).volume())}
    except Exception as error:  # of OCCT's own kinds, too
        return {"fault": str(error)} if "pthread_create" in str(error) else {"iou": None}


def iou(one: float, other: float, common: float) -> float | None:
    """None for a common volume that cannot be: the intersection has failed without saying so."""
    if not 0 <= common <= EXCESS * min(one, other):
        return None
    return min(common / (one + other - common), 1.0)


def triangles(program: str) -> dict[str, Any]:
    """{"vertices": [V, 3], "faces": [F, 3]} of the program's solid, in its own unit."""
    vertices, faces = mesh(solid(program))
    return {"vertices": vertices.tolist(), "faces": faces.tolist()}


def solid(program: str) -> cq.Shape:
    """The shape that the program leaves in `r`. Raises NoSolid, or whatever the program raises."""
    tree = ast.parse(program)
    tree.body = [one for one in tree.body if not isinstance(one, ast.Import)]
    names: dict[str, Any] = {"__builtins__": {}, "cq": cq}
    exec(compile(tree, "program", "exec"), names)
    found = names["r"]
    shape = found.val() if isinstance(found, cq.Workplane) else found
    if not isinstance(shape, cq.Shape) or not shape.Solids():
        raise NoSolid("r holds no solid")
    if not shape.Volume() > 0:
        raise NoSolid("the solid has no volume")
    return shape


def in_cube(shape: cq.Shape) -> cq.Shape:
    """Moved and scaled to the cube of side 1 around the origin. Raises NoSolid where that leaves no volume."""
    box = shape.BoundingBox()
    size = max(box.xlen, box.ylen, box.zlen)
    found = shape.moved(cq.Location(-box.center)).scale(1 / size)
    if not 0 < found.Volume() <= 1 + 1e-6:
        raise NoSolid("the solid is degenerate")
    return found


def mesh(shape: cq.Shape) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3]. Raises NoSolid for fewer than three triangles."""
    vertices, faces = shape.tessellate(TOLERANCE, ANGLE)
    if len(faces) <= 2:
        raise NoSolid("the solid has no surface")
    return np.array([one.toTuple() for one in vertices]), np.array(faces)


def mesh_in_cube(vertices: list[list[float]], faces: list[list[int]]) -> manifold3d.Manifold:
    points = np.array(vertices)
    low, high = points.min(0), points.max(0)
    return manifold((points - (low + high) / 2) / (high - low).max(), np.array(faces))


def manifold(vertices: np.ndarray, faces: np.ndarray) -> manifold3d.Manifold:
    """Raises NoSolid for a surface that does not close."""
    surface = manifold3d.Mesh(vertices.astype(np.float32), faces.astype(np.uint32))
    surface.merge()
    found = manifold3d.Manifold(surface)
    if found.status() != manifold3d.Error.NoError or not found.volume() > 0:
        raise NoSolid(f"the surface does not close: {found.status()}")
    return found


answer("compare", "r = cq.Workplane().box(1, 1, 1)", "", {"program": "r = cq.Workplane().cylinder(1, 1)"})  # pages in
