"""Surfaces as points: sampled, thinned to those farthest from one another, brought to the scale that the model sees.

Programs live in [-100, 100]. The model sees points divided by 100; test meshes, which fill the unit cube [0, 1], are
seen as (p - 0.5) * 2. Both put a solid of full size into [-1, 1] (cadrille's released code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

SURFACE, SEEN = 8192, 256  # points that are sampled on a surface, and those that the model sees of it
NOISE = 0.01  # standard deviation of a vertex' place, for a mesh within [-1, 1]
MESHES = (".stl", ".obj", ".ply", ".off")


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Triangles. vertices [V, 3] float64, faces [F, 3] int64."""

    vertices: np.ndarray
    faces: np.ndarray

    @classmethod
    def of(cls, vertices: Sequence[Sequence[float]], faces: Sequence[Sequence[int]]) -> Self:
        return cls(np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64))

    def moved(self, shift: np.ndarray, scale: float) -> Mesh:
        """(v + shift) * scale."""
        return Mesh((self.vertices + shift) * scale, self.faces)

    def in_cube(self) -> Mesh:
        """Centred on the origin, its longest side 1. Raises ValueError for a mesh of one point."""
        low, high = self.vertices.min(0), self.vertices.max(0)
        if not (size := float((high - low).max())) > 0:
            raise ValueError("a mesh without any extent")
        return self.moved(-(low + high) / 2, 1 / size)

    def noisy(self, draw: np.random.Generator, deviation: float) -> Mesh:
        """Every vertex moved by Gaussian noise."""
        return Mesh(self.vertices + draw.normal(0, deviation, self.vertices.shape), self.faces)


def read_mesh(path: str | Path) -> Mesh:
    """A file of triangles. Raises ValueError naming the file that holds none, or without the extra that reads them."""
    try:
        import trimesh
    except ImportError as error:
        raise ValueError("a file of a mesh needs the extra: pip install 'posttrain[cad]'") from error
    try:
        found: Any = trimesh.load_mesh(path)
        mesh = Mesh.of(found.vertices, found.faces)
    except Exception as error:  # of trimesh's many readers
        raise ValueError(f"{path}: no mesh: {error}") from error
    if not len(mesh.faces) or not np.isfinite(mesh.vertices).all():
        raise ValueError(f"{path}: a mesh without triangles, or with vertices nowhere")
    return mesh


def surface_points(mesh: Mesh, count: int, draw: np.random.Generator) -> np.ndarray:
    """[count, 3] uniform on the surface. Raises ValueError for a surface without area."""
    corners = mesh.vertices[mesh.faces]  # [F, 3 corners, 3]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    if not areas.sum() > 0:
        raise ValueError("a surface without area")
    chosen = corners[draw.choice(len(areas), count, p=areas / areas.sum())]
    a, b = draw.random((2, count, 1))
    a, b = np.where(a + b > 1, (1 - a, 1 - b), (a, b))  # folded back into the triangle
    return chosen[:, 0] + a * (chosen[:, 1] - chosen[:, 0]) + b * (chosen[:, 2] - chosen[:, 0])


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """[count, 3] of the points [P, 3], each the farthest from those before it; the first is the first.

    Raises ValueError where there are fewer.
    """
    if count > len(points):
        raise ValueError(f"{count} points of {len(points)}")
    chosen = np.zeros(count, dtype=np.int64)
    distance = np.full(len(points), np.inf)
    for i in range(1, count):
        distance = np.minimum(distance, ((points - points[chosen[i - 1]]) ** 2).sum(1))
        chosen[i] = distance.argmax()
    return points[chosen]


def cloud(mesh: Mesh, draw: np.random.Generator, count: int = SEEN, surface: int = SURFACE) -> np.ndarray:
    """[count, 3] float32, what the model sees of a mesh in its own unit."""
    return farthest_points(surface_points(mesh, surface, draw), count).astype(np.float32)


def chamfer(one: Mesh, other: Mesh, draw: np.random.Generator, count: int = SURFACE) -> float:
    """Mean squared distance to the nearest point of the other surface, summed over both ways; in the meshes' unit².

    Raises ValueError without the extra that finds neighbours.
    """
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise ValueError("the Chamfer distance needs the extra: pip install 'posttrain[cad]'") from error
    a, b = (surface_points(mesh, count, draw) for mesh in (one, other))
    return float((KDTree(b).query(a)[0] ** 2).mean() + (KDTree(a).query(b)[0] ** 2).mean())
