"""Made-up walkers, as crops that a detector would cut out of a video. Needs NumPy only.

A person is a build, two shades and a way of walking. Builds and shades of different people are alike, and light, place in the
crop, noise and a bar that hides part of the figure change from track to track or frame to frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
HIGH, WIDE = 24, 16


def people(count: int, random: np.random.Generator) -> Array:
    """``count`` people [count, 8]: height, share of the legs, breadth, shade above, shade below, steps a frame, swing of the legs,
    swing of the arms."""
    low = np.array([17.0, 0.42, 1.5, 0.5, 0.5, 0.06, 0.25, 0.1])
    high = np.array([21.0, 0.52, 2.4, 1.0, 1.0, 0.22, 0.65, 0.8])
    return random.uniform(low, high, (count, len(low)))


def walk(who: Array, frames: int, random: np.random.Generator) -> Array:
    """A new track of each of ``who`` [N, 8]: crops [N, frames, 1, HIGH, WIDE], float32."""
    count = len(who)
    height, legs, breadth, above, below, pace, swing, arms = (v[:, None] for v in who.T)
    moment = random.uniform(0, 2 * np.pi, (count, 1)) + 2 * np.pi * pace * np.arange(frames)
    middle = WIDE / 2 + random.normal(0, 0.7, (count, frames))
    foot = HIGH - 1.5 + random.normal(0, 0.5, (count, frames))
    hip, top = foot - height * legs, foot - height
    shoulder = top + 0.2 * height
    sine = np.sin(moment)
    parts = [(middle, shoulder + breadth, middle, hip - breadth / 2, breadth, above)]
    parts += [(middle, top + 1.5, middle, top + 1.6, 1.4, above)]
    for side in (-1, 1):
        bent = side * swing * sine
        parts.append(
            (
                middle,
                hip,
                middle + height * legs * np.sin(bent),
                hip + height * legs * np.cos(bent),
                0.9,
                below,
            )
        )
        bent = -side * arms * sine
        reach = 0.36 * height
        hand = (middle + reach * np.sin(bent), shoulder + reach * np.cos(bent))
        parts.append((middle, shoulder + 0.5, *hand, 0.7, 0.8 * above))
    crops = np.zeros((count, frames, HIGH, WIDE), np.float32)
    for part in parts:
        crops = np.maximum(crops, _limb(*(np.broadcast_to(v, (count, frames)) for v in part)))
    # A bar hides some rows of some frames, as a fence or another person would.
    start = random.integers(0, HIGH, (count, frames, 1))
    row = np.arange(HIGH)
    hidden = (row >= start) & (row < start + 6) & (random.random((count, frames, 1)) < 0.4)
    crops = np.where(hidden[..., None], 0.3, crops)
    light = random.uniform(0.7, 1.3, (count, 1, 1, 1))
    dark = random.uniform(-0.1, 0.1, (count, 1, 1, 1))
    crops = light * crops + dark + 0.12 * random.standard_normal(crops.shape, np.float32)
    return crops[:, :, None].astype(np.float32)


def _limb(x0: Array, y0: Array, x1: Array, y1: Array, radius: Array, shade: Array) -> Array:
    """A soft-edged capsule from (x0, y0) to (x1, y1), all [N, T]: [N, T, HIGH, WIDE]."""
    x0, y0, x1, y1, radius, shade = (
        v.astype(np.float32)[..., None, None] for v in (x0, y0, x1, y1, radius, shade)
    )
    x = np.arange(WIDE, dtype=np.float32) + 0.5
    y = np.arange(HIGH, dtype=np.float32)[:, None] + 0.5
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
    along = np.clip(along, 0, 1)
    away = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    soft: Array = shade * np.clip(radius + 0.5 - away, 0, 1)
    return soft
