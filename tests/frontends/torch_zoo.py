"""Recurrent torch modules as people write them: every form, layout and way to tell what the states are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Step(nn.Module):
    """``forward(x, *states) -> (outputs, next states)``, a torch LSTM cell inside, outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, hidden: Tensor, memory: Tensor) -> Any:
        h, c = self.cell(x, (hidden, memory))
        return {"level": self.head(h), "hidden": h}, (h, c)


class Forecaster(nn.Module):
    """A user's own ``(x[B, T, ...], state) -> (y, state)`` round torch.nn.LSTM, whose state may be left out."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, batch_first=batch_first)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        y, state = self.lstm(x, state)
        return self.head(y), state


class NestedStates(nn.Module):
    """A list with (h, c) for each layer, a loop over time, one output for the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [4, 3]
        self.cells = nn.ModuleList([nn.LSTMCell(3, 4), nn.LSTMCell(4, 3)])

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if state is None:
            state = [(x.new_zeros(x.shape[0], h), x.new_zeros(x.shape[0], h)) for h in self.hidden]
        for t in range(x.shape[1]):
            y, following = x[:, t], []
            for cell, before in zip(self.cells, state, strict=True):
                y, c = cell(y, before)
                following.append((y, c))
            state = following
        return y, state


class UserConvLSTMCell(nn.Module):
    """The ConvLSTM cell much copied from GitHub: gates i, f, o, g, states from ``init_hidden``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim = 3
        self.conv = nn.Conv2d(2 + 3, 4 * 3, 3, padding=1)

    def forward(self, x: Tensor, cur_state: Any) -> Any:
        h_cur, c_cur = cur_state
        gates = self.conv(torch.cat([x, h_cur], dim=1))
        i, f, o, g = torch.split(gates, self.hidden_dim, dim=1)
        c_next = torch.sigmoid(f) * c_cur + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_next), c_next

    def init_hidden(self, batch_size: int, image_size: tuple[int, int]) -> Any:
        shape = (batch_size, self.hidden_dim, *image_size)
        return torch.zeros(shape), torch.zeros(shape)


class TwoConvolutions(nn.Module):
    """A cell with one convolution for x and another for h, told by ``hidden_channels`` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_channels = 3
        self.from_x = nn.Conv2d(2, 12, 3, padding=1)
        self.from_h = nn.Conv2d(3, 12, 3, padding=1, bias=False)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        i, f, g, o = (self.from_x(x) + self.from_h(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Counter(nn.Module):
    """Two inputs, an integer state beside a float one, both with initial values of their own."""

    def initial_states(self, streams: int) -> tuple[Tensor, Tensor]:
        return torch.full((streams, 1), 7, dtype=torch.int64), torch.tensor([[0.5, -1.0]]).repeat(streams, 1)

    def forward(self, x: Tensor, gain: Tensor, seen: Tensor, mean: Tensor) -> Any:
        seen = seen + 1
        mean = mean + (x * gain - mean) / seen
        return mean * 2, (seen, mean)


class Learned(nn.Module):
    """Starts from a state it has learned unless it is given one."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.cell = nn.GRUCell(2, 2)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        h = self.start.expand(x.shape[0], 2) if h is None else h
        return self.cell(x, h)


class Window(nn.Module):
    """Looks along time as well: a window, although it gives a state back."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 3, 3, padding=1)
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.lstm(self.mix(x.transpose(1, 2)).transpose(1, 2), state)


class FixedBatch(nn.Module):
    """Does something else for two streams than for more."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = h + x * (3.0 if x.shape[0] == 2 else 5.0)
        return h, (h,)


class Branches(nn.Module):
    """A branch on a value, which no exporter can follow."""

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = h + x if float(x.sum()) > 0 else h - x
        return h, (h,)


class NotAStep(nn.Module):
    """One tensor in, one out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)
