"""DeepConvLSTM (Ordóñez & Roggen 2016): four convolutions over time, two LSTM layers, a window of wearable sensors.

Three forms of one network, with one set of weights:

- :class:`DeepConvLSTM` takes a window [B, T, sensors], as it is trained.
- :class:`RecomputeStep` takes a sample and keeps the last T - 1 as its state: what one writes around a window model.
- :class:`RingStep` takes a sample and keeps what the layers still need of earlier ones: every convolution the last K - 1 rows of
  its input, the LSTM the pre-activations of the rows its window covers. Same numbers, far less work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL = 5  # samples; the paper's
LAYERS = 4


class DeepConvLSTM(nn.Module):
    """Logits [B, classes] of a window [B, window, sensors]; convolutions are valid in time and apart for every sensor."""

    def __init__(
        self, sensors: int, classes: int, window: int = 24, filters: int = 64, units: int = 128
    ) -> None:
        super().__init__()
        self.sensors, self.window, self.filters, self.units = sensors, window, filters, units
        self.rows = window - LAYERS * (KERNEL - 1)  # what the LSTM sees of a window
        if self.rows < 1:
            raise ValueError(
                f"a window of {window} samples is shorter than {LAYERS} convolutions of {KERNEL}"
            )
        widths = [1] + [filters] * LAYERS
        self.convs = nn.ModuleList(nn.Conv2d(widths[k], widths[k + 1], (KERNEL, 1)) for k in range(LAYERS))
        self.first = nn.LSTMCell(filters * sensors, units)
        self.second = nn.LSTMCell(units, units)
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, None]  # [B, 1, T, sensors]
        for conv in self.convs:
            rows = F.relu(conv(rows))
        rows = rows.transpose(1, 2).flatten(2)  # [B, rows, filters * sensors]
        return self.head(self.recur([rows[:, t] for t in range(self.rows)]))

    def recur(self, rows: list[Tensor]) -> Tensor:
        """h of the second layer after ``rows``, from zero state."""
        a = self.first(rows[0])
        b = self.second(a[0])
        for row in rows[1:]:
            a = self.first(row, a)
            b = self.second(a[0], b)
        return b[0]


class RecomputeStep(nn.Module):
    """forward(x [B, sensors], past [B, T - 1, sensors]) -> logits, past: the whole window anew for every sample."""

    def __init__(self, net: DeepConvLSTM) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        window = torch.cat([past, x[:, None]], 1)
        return self.net(window), window[:, 1:]


class RingStep(nn.Module):
    """forward(x, ring1 .. ring4, gates) -> logits, and the next of each state.

    ring k: [B, channels, K - 1, sensors], the rows that convolution k reads again. gates: [B, rows - 1, 4 * units], what
    the first LSTM layer gets from its input for the rows that stay in the window.
    """

    def __init__(self, net: DeepConvLSTM) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, x: Tensor, ring1: Tensor, ring2: Tensor, ring3: Tensor, ring4: Tensor, gates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        net = self.net
        row, kept = x[:, None, None], []
        for conv, ring in zip(net.convs, (ring1, ring2, ring3, ring4), strict=True):
            seen = torch.cat([ring, row], 2)
            kept.append(seen[:, :, 1:])
            row = F.relu(conv(seen))
        first, second = net.first, net.second
        new = F.linear(row.flatten(1), first.weight_ih, first.bias_ih + first.bias_hh)
        gates = torch.cat([gates, new[:, None]], 1)
        i, _, g, o = gates[:, 0].chunk(4, 1)  # from zero state
        c = torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        b = second(h)
        for t in range(1, net.rows):
            i, f, g, o = (gates[:, t] + F.linear(h, first.weight_hh)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            b = second(h, b)
        return net.head(b[0]), *kept, gates[:, 1:]


def ring_shapes(net: DeepConvLSTM) -> dict[str, tuple[int, ...]]:
    """Shapes of RingStep's states without the stream axis."""
    channels = [1] + [net.filters] * (LAYERS - 1)
    rings = {f"ring{k + 1}": (c, KERNEL - 1, net.sensors) for k, c in enumerate(channels)}
    return {**rings, "gates": (net.rows - 1, 4 * net.units)}
