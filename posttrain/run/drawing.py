"""What a prompt shows besides text, for a person who reads a report: its pictures, and its clouds of points."""

from __future__ import annotations

import math

import numpy as np

from posttrain.chat import Tokens
from posttrain.core import Rollout
from posttrain.policy.parts import parts_of

HEIGHT, WIDEST = 96, 256  # pixels of a picture in a report
GROUND, DOT = 255, 40
VIEW = np.array([[1, -1, 0], [0.5, 0.5, -1]]) / np.array([[math.sqrt(2)], [math.sqrt(1.5)]])  # from a corner above


def draw_shown(rollout: Rollout) -> np.ndarray | None:
    """uint8 [96, W, 3] of what the first prompt shows, side by side; None if that is text alone."""
    trace = rollout.turns[0].reply.trace if rollout.turns else None
    shown = [part for _, part in parts_of(trace.asked)] if isinstance(trace, Tokens) else []
    drawn = [one for part in shown if (one := picture_of(part)) is not None]
    return np.concatenate(drawn, 1) if drawn else None


def picture_of(part: object) -> np.ndarray | None:
    """uint8 [96, W, 3] of a picture or of points; None of what is neither."""
    if (pixels := getattr(part, "pixels", None)) is not None:
        return resized(pixels)
    content = getattr(part, "content", None)
    return scattered(content) if getattr(part, "kind", None) == "points" and content is not None else None


def resized(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [96, W, 3], by the nearest pixels."""
    height, width = pixels.shape[:2]
    wide = min(max(round(width * HEIGHT / height), 1), WIDEST)
    return pixels[np.arange(HEIGHT) * height // HEIGHT][:, np.arange(wide) * width // wide]


def scattered(points: np.ndarray) -> np.ndarray:
    """[n, 3] -> uint8 [96, 96, 3]: dots, seen from a corner above, the darker the nearer."""
    flat = points @ VIEW.T
    low, span = flat.min(0), max(float(np.ptp(flat, 0).max()), 1e-9)
    at = np.clip(((flat - low) / span * (HEIGHT - 3)).round().astype(int) + 1, 0, HEIGHT - 2)
    depth = points.sum(1)
    shade = DOT + (120 * (depth.max() - depth) / max(float(np.ptp(depth)), 1e-9)).astype(np.uint8)
    picture = np.full((HEIGHT, HEIGHT), GROUND, np.uint8)
    for i in np.argsort(depth):
        picture[at[i, 1] : at[i, 1] + 2, at[i, 0] : at[i, 0] + 2] = shade[i]
    return picture[..., None].repeat(3, 2)
