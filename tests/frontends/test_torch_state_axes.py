"""States whose streams lie on different axes, as audio models in streaming form have them."""

import torch
from torch import Tensor, nn

import edgelstm


class Denoiser(nn.Module):
    """A causal convolution's past [N, C, T] beside a GRU's hidden state [layers, N, H] and two of them stacked [2, 1, N, H]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru, self.twice = nn.Conv1d(3, 4, 3), nn.GRU(4, 5, 2), nn.GRU(4, 4)

    def forward(self, x: Tensor, past: Tensor, both: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        rows = torch.cat([past, x[:, :, None]], 2)
        y = self.conv(rows)[None, :, :, 0]
        y, first = self.twice(y, both[0])
        y, second = self.twice(y, both[1])
        y, hidden = self.gru(y, hidden)
        return y[0], rows[:, :, 1:], torch.stack([first, second]), hidden


def test_each_state_has_its_streams_where_it_has_them() -> None:
    torch.manual_seed(0)
    shapes = {"past": (3, 2), "both": (2, 1, 4), "hidden": (2, 5)}
    exported = edgelstm.export(Denoiser(), frame=(3,), states=shapes, limit=10)
    assert {s.name: s.shape[1:] for s in exported.step.signature.states} == shapes
    assert isinstance(exported.step.signature.stream_axis, str)  # any number of streams
