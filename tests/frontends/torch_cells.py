"""Recurrent cells as public PyTorch code writes them; each class says what is particular about it.

x has 2 channels, the state 3. All are cells or steps of maps of 6 x 5 unless they say otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUTS, HIDDEN = 2, 3
FRAME = (INPUTS, 6, 5)


def joint_conv(outputs: int = 4 * HIDDEN, inputs: int = INPUTS + HIDDEN, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def zeros(x: Tensor, channels: int = HIDDEN) -> Tensor:
    return torch.zeros(x.size(0), channels, x.size(2), x.size(3), device=x.device)


class OrderedCell(nn.Module):
    """One convolution for all gates, cut in the order it is told; states are two arguments, both given back."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.hidden_channels = HIDDEN
        self.gates = joint_conv()

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = dict(zip(self.order, self.gates(torch.cat((x, h), 1)).chunk(4, 1), strict=True))
        c = torch.sigmoid(z["f"]) * c + torch.sigmoid(z["i"]) * torch.tanh(z["g"])
        return torch.sigmoid(z["o"]) * torch.tanh(c), c


class EightConvolutions(nn.Module):
    """Eight convolutions with names of their own; peepholes full-map or per channel, as parameters or as buffers."""

    def __init__(self, peepholes: str = "none", size: tuple[int, int] = (6, 5)) -> None:
        super().__init__()
        self.hidden_size = HIDDEN
        for gate in "ifco":
            setattr(self, f"Wx{gate}", joint_conv(HIDDEN, INPUTS))
            setattr(self, f"Wh{gate}", joint_conv(HIDDEN, HIDDEN, bias=False))
        shape = (1, HIDDEN, *size) if "map" in peepholes else (1, HIDDEN, 1, 1)
        for gate in "ifo":
            value = torch.randn(shape) * 0.5
            if peepholes == "none":
                setattr(self, f"Wc{gate}", None)
            elif "buffer" in peepholes:
                self.register_buffer(f"Wc{gate}", value)
            else:
                setattr(self, f"Wc{gate}", nn.Parameter(value))

    def forward(self, x: Tensor, hidden: Any) -> Any:
        h, c = hidden
        peep = (lambda w, s: 0.0) if self.Wci is None else (lambda w, s: w * s)
        i = torch.sigmoid(self.Wxi(x) + self.Whi(h) + peep(self.Wci, c))
        f = torch.sigmoid(self.Wxf(x) + self.Whf(h) + peep(self.Wcf, c))
        c = f * c + i * torch.tanh(self.Wxc(x) + self.Whc(h))
        o = torch.sigmoid(self.Wxo(x) + self.Who(h) + peep(self.Wco, c))
        return o * torch.tanh(c), (o * torch.tanh(c), c)


class LazyPeepholes(EightConvolutions):
    """Peepholes that are plain tensors, made when the first frame tells the size; states left out at first."""

    def forward(self, x: Tensor, hidden: Any = None) -> Any:
        if self.Wci is None:
            shape = (1, HIDDEN, x.size(2), x.size(3))
            self.Wci, self.Wcf, self.Wco = (torch.full(shape, v) for v in (0.2, -0.1, 0.3))
        return super().forward(x, (zeros(x), zeros(x)) if hidden is None else hidden)


class NormOnGates(nn.Module):
    """GroupNorm or LayerNorm over the joint convolution, before it is cut."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.hidden_dim = HIDDEN
        self.conv, self.norm = joint_conv(bias=False), norm

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        i, f, o, g = torch.split(self.norm(self.conv(torch.cat([x, h], dim=1))), self.hidden_dim, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c


class NormPerGate(nn.Module):
    """A norm of its own for each gate, and one for the cell state on its way out."""

    def __init__(self, make: Any, norm_cell: bool = False) -> None:
        super().__init__()
        self.hidden_dim = HIDDEN
        self.conv_x, self.conv_h = joint_conv(inputs=INPUTS), joint_conv(inputs=HIDDEN, bias=False)
        self.norms = nn.ModuleList(make() for _ in range(4))
        self.norm_c = make() if norm_cell else nn.Identity()

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        parts = (self.conv_x(x) + self.conv_h(h)).chunk(4, 1)
        i, f, g, o = (norm(part) for norm, part in zip(self.norms, parts, strict=True))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c).tanh(), c


class ForgetBias(nn.Module):
    """A bias of 1 added to the forget gate, gates in TensorFlow's old order i, g, f, o, leaky pieces of F everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.num_hidden, self.forget_bias = HIDDEN, 1.0
        self.conv_x, self.conv_h = joint_conv(inputs=INPUTS), joint_conv(inputs=HIDDEN)

    def forward(self, x: Tensor, h_t: Tensor, c_t: Tensor) -> Any:
        x_i, x_g, x_f, x_o = torch.split(self.conv_x(x), self.num_hidden, dim=1)
        h_i, h_g, h_f, h_o = torch.split(self.conv_h(h_t), self.num_hidden, dim=1)
        f_t = F.sigmoid(x_f + h_f + self.forget_bias)
        c_new = f_t * c_t + F.sigmoid(x_i + h_i) * F.tanh(x_g + h_g)
        return F.sigmoid(x_o + h_o) * F.tanh(c_new), c_new


class HiddenStride(nn.Module):
    """The input is convolved with stride 2, so the state lives on a coarser map; made by ``init_hidden``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_x = nn.Conv2d(INPUTS, 4 * HIDDEN, 3, stride=2, padding=1)
        self.conv_h = joint_conv(inputs=HIDDEN, bias=False)

    def init_hidden(self, batch_size: int, image_size: tuple[int, int]) -> Any:
        shape = (batch_size, HIDDEN, *((s + 1) // 2 for s in image_size))
        return torch.zeros(shape), torch.zeros(shape)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        f, i, o, g = (self.conv_x(x) + self.conv_h(h)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class ConvGRU(nn.Module):
    """Reset before the convolution of the candidate (Ballas et al. 2015), or after it (as torch.nn.GRU)."""

    def __init__(self, reset_after: bool) -> None:
        super().__init__()
        self.hidden_dim, self.reset_after = HIDDEN, reset_after
        self.conv_gates = joint_conv(2 * HIDDEN)
        self.can_x, self.can_h = joint_conv(HIDDEN, INPUTS), joint_conv(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h_cur: Tensor | None = None) -> Tensor:
        h = zeros(x) if h_cur is None else h_cur
        reset, update = torch.split(torch.sigmoid(self.conv_gates(torch.cat([x, h], 1))), HIDDEN, 1)
        inner = reset * self.can_h(h) if self.reset_after else self.can_h(reset * h)
        return (1 - update) * h + update * torch.tanh(self.can_x(x) + inner)


class ConvolvedPeepholes(nn.Module):
    """Peepholes that are convolutions of the old cell state, for all three gates; reflected borders."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim = HIDDEN
        self.conv = nn.Conv2d(INPUTS + HIDDEN, 4 * HIDDEN, 3, padding="same", padding_mode="reflect")
        self.peep = nn.Conv2d(HIDDEN, 3 * HIDDEN, 3, padding="same", padding_mode="reflect", bias=False)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        zi, zf, zg, zo = self.conv(torch.cat([x, h], 1)).split(HIDDEN, 1)
        pi, pf, po = self.peep(c).split(HIDDEN, 1)
        c = torch.sigmoid(zf + pf) * c + torch.sigmoid(zi + pi) * torch.tanh(zg)
        return torch.sigmoid(zo + po) * torch.tanh(c), c


class CellWithOutput(nn.Module):
    """Three things come back, one after the other: a read-out, h and c; states nested or not."""

    def __init__(self, nested: bool, order: str) -> None:
        super().__init__()
        self.hidden_dim, self.nested = HIDDEN, nested
        self.cell = OrderedCell(order)
        self.head = nn.Conv2d(HIDDEN, 1, 1)

    def forward(self, x: Tensor, *state: Any) -> Any:
        h, c = self.cell(x, *(state[0] if self.nested else state))
        return self.head(h), h, c
