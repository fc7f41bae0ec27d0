"""Pictures of meshes, drawn here: triangles, the nearest on top, one lamp. No graphics library is needed.

The camera is that of cadrille's released renderer (open3d): it looks from `centre - 0.9 direction` along `direction`,
with up near y and a field of view of 60 degrees. Shades differ from open3d's.
"""

from __future__ import annotations

import numpy as np

from posttrain.systems.cadrille.points import Mesh

VIEWS = ((1, 1, 1), (-1, -1, -1), (-1, 1, -1), (1, -1, 1))
DISTANCE, FIELD = 0.9, np.pi / 3  # in lengths of a view's direction, for a mesh within a cube of side 1; radians
COLOUR, BACKGROUND = (255, 255, 136), 255
PIXELS, BORDER = 128, 3
AMBIENT = 0.35  # share of light that falls on every face
LIGHT = np.array([0.35, 0.6, -0.72])  # towards the lamp: right, above and behind the camera


def picture(mesh: Mesh, direction: tuple[float, float, float] = VIEWS[0], pixels: int = PIXELS) -> np.ndarray:
    """[pixels, pixels, 3] uint8 of a mesh within the cube of side 1 around the origin."""
    front = np.array(direction, dtype=float)
    axes = camera_axes(front)
    seen = (mesh.vertices + DISTANCE * front) @ axes.T  # [V, 3] right, up, forward
    focus = pixels / 2 / np.tan(FIELD / 2)
    flat = seen[:, :2] / seen[:, 2:] * (focus, -focus) + pixels / 2  # columns and rows, downwards
    corners = seen[mesh.faces]  # [F, 3 corners, 3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = np.abs(normals @ LIGHT) / np.maximum(np.linalg.norm(normals, axis=1), 1e-12)
    shade = AMBIENT + (1 - AMBIENT) * facing  # [F]
    return fill(flat[mesh.faces], 1 / corners[:, :, 2], shade, pixels)


def camera_axes(front: np.ndarray) -> np.ndarray:
    """[3, 3] unit vectors to the right, up and forward, of a camera that looks along `front`, which is not y."""
    forward = front / np.linalg.norm(front)
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), forward])


def fill(corners: np.ndarray, nearness: np.ndarray, shade: np.ndarray, pixels: int) -> np.ndarray:
    """The picture of triangles [F, 3 corners, column and row]; `nearness` [F, 3] is 1 / depth, linear over each."""
    low = np.clip(np.floor(corners.min(1)), 0, pixels).astype(int)  # [F, 2] the box of pixels around each
    size = np.clip(np.ceil(corners.max(1)), 0, pixels).astype(int) - low
    counts = size.prod(1)
    face = np.repeat(np.arange(len(corners)), counts)  # one entry for each pixel of each box
    place = np.arange(len(face)) - np.repeat(counts.cumsum() - counts, counts)
    column, row = low[face, 0] + place % size[face, 0], low[face, 1] + place // size[face, 0]
    a, b, c = (corners[:, i] for i in range(3))
    whole = cross(b - a, c - a)[face]
    point = np.stack([column, row], 1) + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):  # triangles seen from their edge
        shares = np.stack(
            [cross((q - p)[face], point - p[face]) / whole for p, q in ((b, c), (c, a), (a, b))], 1
        )  # barycentric
    inside = (shares >= 0).all(1)
    face, column, row = face[inside], column[inside], row[inside]
    order = np.argsort((shares[inside] * nearness[face]).sum(1), kind="stable")  # the nearest is drawn last
    image = np.full((pixels, pixels, 3), BACKGROUND, dtype=np.uint8)
    image[row[order], column[order]] = (shade[face[order], None] * COLOUR).astype(np.uint8)
    return image


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """[F] of vectors [F, 2]: twice the area that they span."""
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


def montage(mesh: Mesh) -> np.ndarray:
    """[268, 268, 3] uint8: four views in two rows, each of 128 pixels within a black border of 3.

    They stand on their heads, as the released code's camera has them.
    """
    turned = [np.rot90(picture(mesh, view), 2) for view in VIEWS]
    views = [np.pad(view, ((BORDER, BORDER), (BORDER, BORDER), (0, 0))) for view in turned]
    return np.vstack([np.hstack(views[:2]), np.hstack(views[2:])])
