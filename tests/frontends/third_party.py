"""Two networks other people trained, written anew from the names and shapes of their weights and what is documented
of them beside the files: a camera detector and a satellite forecaster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _stage(kinds: str, *channels: int) -> nn.Sequential:
    """Convolutions of the kernels in ``kinds`` from channels to channels, BatchNorm and ReLU behind each."""
    layers: list[nn.Module] = []
    for kernel, a, b in zip(map(int, kinds), channels, channels[1:], strict=False):
        layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)


class JointCell(nn.Module):
    """One convolution over x and h; gates i, f, o, g."""

    def __init__(self, inputs: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.hidden = hidden
        self.conv = nn.Conv2d(inputs + hidden, 4 * hidden, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = self.conv(torch.cat([x, h], 1)).split(self.hidden, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell_list = nn.ModuleList([JointCell(1, 32), JointCell(32, 16), JointCell(16, 1)])


class BallDetector(nn.Module):
    """Windows of RGB frames [B, T, 3, H, W] to maps [B, T, 1, H/4, W/4]: an encoder-decoder, three ConvLSTM layers that
    start from zeros, a BatchNorm and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.seq1, self.seq2, self.seq3 = _stage("3", 3, 8), _stage("3", 8, 16), _stage("3", 24, 32)
        self.seq4, self.seq5 = _stage("33", 56, 64, 64), _stage("333", 120, 128, 128, 64)
        self.seq6, self.seq7 = _stage("133", 184, 64, 32, 32), _stage("133", 88, 16, 16, 1)
        self.conv_lstm = Cells()
        self.seq8 = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU())

    def features(self, x: Tensor) -> Tensor:
        d1 = F.max_pool2d(self.seq1(x), 2)
        d2 = F.max_pool2d(torch.cat([d1, self.seq2(d1)], 1), 2)
        k1 = torch.cat([d2, self.seq3(d2)], 1)
        d3 = F.max_pool2d(k1, 2)
        k2 = torch.cat([d3, self.seq4(d3)], 1)
        s5 = self.seq5(F.max_pool2d(k2, 2))
        s6 = self.seq6(torch.cat([_twice(s5), k2], 1))
        return self.seq7(torch.cat([_twice(s6), k1], 1))

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        maps = self.features(x.flatten(0, 1)).unflatten(0, (b, t))
        states = [
            (maps.new_zeros(b, cell.hidden, *maps.shape[-2:]),) * 2 for cell in self.conv_lstm.cell_list
        ]
        outputs = []
        for k in range(t):
            y = maps[:, k]
            for layer, cell in enumerate(self.conv_lstm.cell_list):
                y, c = cell(y, states[layer])
                states[layer] = (y, c)
            outputs.append(self.seq8(y))
        return torch.stack(outputs, 1)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class PeepholeCell(nn.Module):
    """Reflected borders; convolved peepholes on the old cell state for i, f and o; gates i, f, g, o."""

    def __init__(self, inputs: int, hidden: int, kernel: int, memory_kernel: int) -> None:
        super().__init__()
        self.hidden = hidden
        reflect: Any = {"padding": "same", "padding_mode": "reflect"}
        self.conv_cc = nn.Conv2d(inputs + hidden, 4 * hidden, kernel, **reflect)
        self.conv_ll = nn.Conv2d(hidden, 3 * hidden, memory_kernel, bias=False, **reflect)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        zi, zf, zg, zo = self.conv_cc(torch.cat([x, h], 1)).split(self.hidden, 1)
        pi, pf, po = self.conv_ll(c).split(self.hidden, 1)
        c = torch.sigmoid(zf + pf) * c + torch.sigmoid(zi + pi) * torch.tanh(zg)
        return torch.sigmoid(zo + po) * torch.tanh(c), c


class Satellite(nn.Module):
    """A stack of such cells over [B, T, C, H, W]; the states of all layers are taken and given back."""

    def __init__(self, layers: list[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.cell_list = nn.ModuleList(PeepholeCell(*sizes) for sizes in layers)

    def forward(self, x: Tensor, states: Any = None) -> Any:
        if states is None:
            shape = (x.shape[0], *x.shape[-2:])
            states = [(x.new_zeros(shape[0], c.hidden, *shape[1:]),) * 2 for c in self.cell_list]
        outputs = []
        for t in range(x.shape[1]):
            y, following = x[:, t], []
            for cell, state in zip(self.cell_list, states, strict=True):
                y, c = cell(y, state)
                following.append((y, c))
            states = following
            outputs.append(y)
        return torch.stack(outputs, 1), states
