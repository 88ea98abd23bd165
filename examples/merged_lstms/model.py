"""Two ways to read several variables: an LSTM for each, merged by one head; or one LSTM over all of them.

Both foretell three things of the same plant, each in the output that suits it: a value (identity), a probability
(logistic), and one of several classes (softmax).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 3


class Head(nn.Module):
    """What the hidden state [B, units] says: value [B, 1], probability [B, 1], classes [B, CLASSES]."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(units, 2 + CLASSES)

    def logits(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before the output functions, as the losses want them."""
        value, probability, classes = self.linear(h).split([1, 1, CLASSES], 1)
        return value, probability, classes

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        value, probability, classes = self.logits(h)
        return {"value": value, "probability": probability.sigmoid(), "classes": classes.softmax(1)}


class Merged(nn.Module):
    """An LSTM for each variable: x [B, variables], h and c [B, variables, units] -> outputs, (h, c)."""

    def __init__(self, variables: int, units: int) -> None:
        super().__init__()
        self.shape = (variables, units)
        self.cells = nn.ModuleList(nn.LSTMCell(1, units) for _ in range(variables))
        self.head = Head(variables * units)

    def recur(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the head reads, and the states."""
        after = [cell(x[:, k : k + 1], (h[:, k], c[:, k])) for k, cell in enumerate(self.cells)]
        h, c = (torch.stack(part, 1) for part in zip(*after, strict=True))
        return h.flatten(1), h, c

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        read, h, c = self.recur(x, h, c)
        return self.head(read), (h, c)


class Joint(nn.Module):
    """One LSTM over all variables: x [B, variables], h and c [B, units] -> outputs, (h, c)."""

    def __init__(self, variables: int, units: int) -> None:
        super().__init__()
        self.shape = (units,)
        self.cell = nn.LSTMCell(variables, units)
        self.head = Head(units)

    def recur(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the head reads, and the states."""
        h, c = self.cell(x, (h, c))
        return h, h, c

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        read, h, c = self.recur(x, h, c)
        return self.head(read), (h, c)
