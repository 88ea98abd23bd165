"""A small process plant with six sensors, simulated sample by sample; NumPy only.

An operator moves the set-point in steps. The flow follows within seconds and overshoots; motor current and pressure
follow the flow, the pressure with the ripple of a pump whose speed is the flow's; temperature and level lag behind by
minutes. One sample a second. All values are in units of their usual range, so that no scaling is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

CHANNELS = ("set_point", "flow", "current", "pressure", "temperature", "level")
NOISE = np.array([0.0, 0.02, 0.05, 0.03, 0.01, 0.01])
STEP_EVERY = 50  # samples between two set-point steps, on average
SETTLE = 400  # samples from a cold plant to one at work

TEST_STREAM = Path(__file__).with_name("test_stream.npz")


class Plants:
    """``count`` independent plants at work; equal seeds give equal signals."""

    def __init__(self, count: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.set_point = self.random.uniform(-1, 1, count)
        self.flow = self.set_point.copy()
        self.trend = np.zeros(count)
        self.ripple = self.random.uniform(0, 2 * np.pi, count)
        self.temperature = np.zeros(count)
        self.level = np.zeros(count)
        self.samples(SETTLE)

    def samples(self, count: int) -> Array:
        """The next ``count`` samples [count, plants, 6] of all plants."""
        return np.stack([self._sample() for _ in range(count)])

    def _sample(self) -> Array:
        random, plants = self.random, len(self.flow)
        moves = random.random(plants) < 1 / STEP_EVERY
        self.set_point = np.where(moves, random.uniform(-1, 1, plants), self.set_point)
        # The flow loop: second order, period about 15 s, damping 0.35, shaken a little.
        self.trend += 0.18 * (self.set_point - self.flow) - 0.3 * self.trend + random.normal(0, 0.01, plants)
        self.flow += self.trend
        self.ripple += 0.8 + 0.3 * self.flow
        self.temperature += (0.6 * self.flow + 0.4 * self.flow**2 - self.temperature) / 60
        self.level += (self.flow - self.level * np.abs(self.level) - 0.3 * self.temperature) / 150
        current = 0.7 * self.flow + 0.3 * self.flow**2 + 0.8 * np.maximum(self.trend, 0)
        pressure = 0.5 * self.flow - 0.4 * self.level + 0.25 * np.sin(self.ripple)
        signal = np.stack(
            [self.set_point, self.flow, current, pressure, self.temperature, self.level], axis=-1
        )
        return (signal + NOISE * random.normal(size=signal.shape)).astype(np.float32)


def test_stream() -> Array:
    """The committed live stream: 200 samples [200, 6] of a plant that no training saw."""
    with np.load(TEST_STREAM) as file:
        return np.asarray(file["frames"])
