"""Made-up weather: cells of cloud and rain that grow, drift with the wind and fade. Needs NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MAPS = ("rain", "cloud", "wind east", "wind south")  # mm/h, share of the sky, m/s, m/s
SIDE, CELLS = 24, 5
#: Pixels a frame that a wind of 1 m/s carries a cell.
DRIFT = 0.1


class Weather:
    """``areas`` areas of SIDE x SIDE pixels, each with a wind and cells of its own; what leaves one side comes back at the other."""

    def __init__(self, areas: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.mean = self.random.normal(0, 5, (areas, 2))  # wind east and south, m/s
        self.veer = self.random.normal(0, 0.06, areas)  # radians a frame by which it turns
        self.place = self.random.uniform(0, SIDE, (areas, CELLS, 2))
        self.life = self.random.uniform(15, 40, (areas, CELLS))  # frames
        self.age = self.random.uniform(0, self.life)
        self.strength = self.random.uniform(0.4, 1.5, (areas, CELLS))
        self.turn = self.random.normal(0, 0.35, areas)  # m/s a pixel from the middle

    def frames(self, count: int) -> Array:
        """The next ``count`` frames [count, areas, maps, SIDE, SIDE], float32."""
        return np.stack([self._next() for _ in range(count)]).astype(np.float32)

    def _wind(self, x: Array, y: Array) -> tuple[Array, Array]:
        """East and south at pixels x, y [areas, ...]: the mean wind and a vortex around the middle."""
        axes = (-1,) + (1,) * (x.ndim - 1)
        turn = self.turn.reshape(axes)
        away = np.exp(-(((x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2) / 100))
        east = self.mean[:, 0].reshape(axes) - turn * (y - SIDE / 2) * away
        return east, self.mean[:, 1].reshape(axes) + turn * (x - SIDE / 2) * away

    def _next(self) -> Array:
        areas = len(self.mean)
        # Damped as much as the noise adds: both keep their standard deviation.
        self.veer = 0.98 * self.veer + self.random.normal(0, 0.012, areas)
        sine, cosine = np.sin(self.veer), np.cos(self.veer)
        east, south = self.mean.T
        self.mean = 0.998 * np.stack([cosine * east - sine * south, sine * east + cosine * south], 1)
        self.mean += self.random.normal(0, 0.3, (areas, 2))
        wind = self._wind(self.place[..., 0], self.place[..., 1])
        self.place = (self.place + DRIFT * np.stack(wind, -1)) % SIDE
        self.age += 1
        gone = self.age > self.life
        self.place[gone] = self.random.uniform(0, SIDE, (int(gone.sum()), 2))
        self.life[gone] = self.random.uniform(15, 40, int(gone.sum()))
        self.age[gone] = 0
        # A cloud comes before its rain, and stays longer.
        cloudy = np.sin(np.pi * self.age / self.life)
        rainy = np.clip(np.sin(np.pi * (self.age / self.life - 0.2) / 0.7), 0, None)
        cloud = 1 - np.exp(-self._blobs(2 * self.strength * cloudy, 3.5))
        rain = self._blobs(6 * self.strength * rainy, 2.0)
        grid = np.arange(SIDE) + 0.5
        x, y = np.broadcast_to(grid, (areas, SIDE, SIDE)), np.broadcast_to(grid[:, None], (areas, SIDE, SIDE))
        maps = np.stack([rain, cloud, *self._wind(x, y)], 1)
        noise = self.random.normal(size=maps.shape) * np.array([0.05, 0.02, 0.3, 0.3])[:, None, None]
        return maps + noise

    def _blobs(self, heights: Array, width: float) -> Array:
        """Sum over the cells of Gaussians of ``heights`` [areas, CELLS]: [areas, SIDE, SIDE]."""
        grid = np.arange(SIDE) + 0.5
        far = np.abs(grid - self.place[..., None])  # [areas, CELLS, 2, SIDE]
        near = np.exp(-0.5 * (np.minimum(far, SIDE - far) / width) ** 2)
        return np.einsum("nk,nky,nkx->nyx", heights, near[:, :, 1], near[:, :, 0])
