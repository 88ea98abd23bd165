"""Torch's recurrent modules written out: a forward may still ask them for their weights and options."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import edgelstm  # noqa: E402


class ByHand(nn.Module):
    """The input half of the first product apart, as streaming code often has it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.gru = nn.GRUCell(4, 5)

    def forward(self, x, h, c, g):
        cell = self.cell
        assert cell.input_size == 3
        assert cell.bias
        z = functional.linear(x, cell.weight_ih, cell.bias_ih) + functional.linear(
            h, cell.weight_hh, cell.bias_hh
        )
        i, f, g_, o = z.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g_)
        h = torch.sigmoid(o) * torch.tanh(c)
        g = self.gru(h + self.gru.weight_hh[:4, 0], g)
        return g, h, c, g


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True)

    def forward(self, x, h, c):
        assert self.lstm.num_layers == 2
        assert self.lstm.dropout == 0
        assert self.lstm.mode == "LSTM"
        y, (h, c) = self.lstm(x[:, None], (h.transpose(0, 1), c.transpose(0, 1)))
        return y[:, 0] + self.lstm.bias_hh_l1[:4], h.transpose(0, 1), c.transpose(0, 1)


def test_weights_and_options_of_cells() -> None:
    made = edgelstm.export(ByHand(), frame=(3,), states={"h": (4,), "c": (4,), "g": (5,)}, limit=20)
    assert made.comparison.worst.worst < 1e-5


def test_weights_and_options_of_stacks() -> None:
    made = edgelstm.export(Stacked(), frame=(3,), states={"h": (2, 4), "c": (2, 4)}, limit=20)
    assert made.comparison.worst.worst < 1e-5
    # Weights nobody asks for are not in the file twice.
    assert (
        sum(t.dims[0] * (t.dims[1] if len(t.dims) > 1 else 1) for t in made.step.model.graph.initializer)
        < 300
    )
