"""Two readers of small pictures in motion: convolutions in every frame and then an LSTM, or a ConvLSTM.

Both are steps, ``forward(x [B, 1, 16, 16], h, c) -> (logits [B, classes], (h, c))``. The first is what Keras writes as
TimeDistributed(Conv2D) and LSTM; the second keeps its state as maps (Shi et al. 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 16


class ConvThenLstm(nn.Module):
    """Two strided convolutions, flattened, an LSTM over what is left."""

    def __init__(self, classes: int, filters: int = 8, units: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, filters, 3, stride=2, padding=1)
        self.second = nn.Conv2d(filters, filters, 3, stride=2, padding=1)
        self.cell = nn.LSTMCell(filters * (SIZE // 4) ** 2, units)
        self.head = nn.Linear(units, classes)
        self.shape = (units,)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        seen = F.relu(self.second(F.relu(self.first(x))))
        h, c = self.cell(seen.flatten(1), (h, c))
        return self.head(h), (h, c)


class ConvLstm(nn.Module):
    """A strided convolution, a ConvLSTM on its maps, their mean."""

    def __init__(self, classes: int, filters: int = 8, hidden: int = 14) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, filters, 3, stride=2, padding=1)
        self.gates = nn.Conv2d(filters + hidden, 4 * hidden, 3, padding=1)
        self.head = nn.Linear(hidden, classes)
        self.shape = (hidden, SIZE // 2, SIZE // 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        seen = F.relu(self.first(x))
        i, f, g, o = self.gates(torch.cat([seen, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h.mean((2, 3))), (h, c)
