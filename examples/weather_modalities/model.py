"""An encoding-forecasting ConvLSTM (Shi et al. 2015) over several maps at once, with normalisation at three places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Normalise:
    """Where the network normalises.

    frame: every map as it comes in, by mean and variance over the training (BatchNorm: in a stream a fixed scale and shift).
    hidden: h as it comes back, before its convolution; output: h as it goes on to the head. Both over all channels and
    pixels of one stream, at every frame (GroupNorm of one group).
    """

    frame: bool = False
    hidden: bool = False
    output: bool = False


class Cell(nn.Module):
    """A ConvLSTM cell; ``pre`` is what the frame adds to the gates [B, 4 * hidden, H, W], nothing in a forecaster."""

    def __init__(self, hidden: int, normalise: Normalise) -> None:
        super().__init__()
        self.back = nn.GroupNorm(1, hidden) if normalise.hidden else nn.Identity()
        self.out = nn.GroupNorm(1, hidden) if normalise.output else nn.Identity()
        self.gates = nn.Conv2d(hidden, 4 * hidden, 3, padding=1)

    def forward(self, pre: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What goes on, and the next h and c; all [B, hidden, H, W]."""
        z = self.gates(self.back(h))
        i, f, g, o = (z if pre is None else z + pre).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h), h, c


class Forecaster(nn.Module):
    """x [B, maps, side, side] in physical units, h, c -> the next ``ahead`` frames [B, ahead, maps, side, side], (h, c).

    The encoder's cell works on a grid of half the side and carries its state; the forecaster's starts from that state and runs
    ``ahead`` times with no frame coming in. Each forecast is x plus a change, which the head gives in units of ``spread``
    [maps], the standard deviation of such changes of each map.
    """

    spread: Tensor

    def __init__(self, spread: Tensor, side: int, hidden: int, ahead: int, normalise: Normalise) -> None:
        super().__init__()
        self.maps, self.ahead = len(spread), ahead
        self.shape = (hidden, side // 2, side // 2)
        self.register_buffer("spread", spread.reshape(-1, 1, 1).clone())
        self.frame = nn.BatchNorm2d(self.maps) if normalise.frame else nn.Identity()
        self.first = nn.Conv2d(self.maps, 4 * hidden, 4, stride=2, padding=1)
        self.encoder = Cell(hidden, normalise)
        self.forecaster = Cell(hidden, normalise)
        self.head = nn.ConvTranspose2d(hidden, self.maps, 4, stride=2, padding=1)

    def encode(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The state after frame ``x``."""
        _, h, c = self.encoder(self.first(self.frame(x)), h, c)
        return h, c

    def forecast(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """From frame ``x`` and the state after it."""
        frames = []
        for _ in range(self.ahead):
            y, h, c = self.forecaster(None, h, c)
            frames.append(x + self.spread * self.head(y))
        return torch.stack(frames, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        h, c = self.encode(x, h, c)
        return {"forecast": self.forecast(x, h, c)}, (h, c)
