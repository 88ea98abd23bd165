"""Torch modules for the benchmark's ``--module``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lstm() -> nn.LSTM:
    """Of the sizes of ``zoo.lstm``'s frames, not of its weights."""
    return nn.LSTM(3, 2, num_layers=1)


class Cell(nn.Module):
    """A cell as users write them: ``cell(x, (h, c)) -> (h, c)``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 2
        self.gates = nn.Linear(3 + 2, 8)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
