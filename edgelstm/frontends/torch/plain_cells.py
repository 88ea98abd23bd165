"""torch.nn.LSTM, GRU and their cells once more, in plain arithmetic: one Linear a cell, then the gates.

What an exporter makes of torch's own modules is one opaque operator over a whole sequence. Written out, a step holds
the arithmetic that :mod:`edgelstm.passes.fuse_gates` knows. Weights are the same tensors, joined.

Sources: the equations in the documentation of torch.nn.LSTM (gates i, f, g, o; ``proj_size``: Sak, Senior &
Beaufays 2014) and torch.nn.GRU (gates r, z, n; Cho et al. 2014, the reset gate after the product).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelstm.errors import EdgeLstmError

#: h of one layer, or h and c.
Carried = tuple[Tensor, ...]


def rewrite(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose torch recurrent modules are plain; ``module`` itself stays as it is.

    A bidirectional module needs the whole sequence at once and is no step: it is left to the exporter.
    """
    copied = copy.deepcopy(module)
    if plain := _plain(copied):
        return plain
    # A module registered twice shares its weights in the copy, too.
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if child not in made and (plain := _plain(child)):
                made[child] = plain
            if child in made:
                setattr(parent, name, made[child])
    return copied


def _plain(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.LSTMCell):
        return PlainLSTMCell(module)
    if isinstance(module, nn.GRUCell):
        return PlainGRUCell(module)
    if isinstance(module, nn.LSTM | nn.GRU) and not module.bidirectional:
        return PlainLSTM(module) if isinstance(module, nn.LSTM) else PlainGRU(module)
    return None


class _LSTMLayer(nn.Module):
    """One LSTM cell: x [N, inputs], (h [N, proj or hidden], c [N, hidden])."""

    def __init__(self, w_x: Tensor, w_h: Tensor, b: Tensor | None, w_proj: Tensor | None) -> None:
        super().__init__()
        self.inputs = w_x.shape[1]
        self.weight = _parameter(torch.cat([w_x, w_h], dim=1))
        self.bias = None if b is None else _parameter(b)
        self.projection = None if w_proj is None else _parameter(w_proj)

    def forward(self, x: Tensor, state: Carried | None) -> Carried:
        if state is None:
            # From zero, the recurrent part and the old cell state drop out.
            i, _, g, o = functional.linear(x, self.weight[:, : self.inputs], self.bias).chunk(4, dim=1)
            c = torch.sigmoid(i) * torch.tanh(g)
        else:
            h, c = state
            z = functional.linear(torch.cat([x, h], dim=1), self.weight, self.bias)
            i, f, g, o = z.chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h if self.projection is None else functional.linear(h, self.projection), c


class _GRULayer(nn.Module):
    """One GRU cell: x [N, inputs], (h [N, hidden],)."""

    def __init__(self, w_x: Tensor, w_h: Tensor, b_x: Tensor | None, b_h: Tensor | None, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.w_x, self.w_h = _parameter(w_x), _parameter(w_h)
        self.b_x = None if b_x is None else _parameter(b_x)
        self.b_h = None if b_h is None else _parameter(b_h)

    def forward(self, x: Tensor, state: Carried | None) -> Carried:
        h = x.new_zeros(x.shape[0], self.hidden) if state is None else state[0]
        r_x, z_x, n_x = functional.linear(x, self.w_x, self.b_x).chunk(3, dim=1)
        r_h, z_h, n_h = functional.linear(h, self.w_h, self.b_h).chunk(3, dim=1)
        z = torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return (n + z * (h - n),)


class _InPlaceOf(nn.Module):
    """What a forward may ask torch's module for: its sizes and options, and its weights under their own names."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        for name, parameter in source.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name in getattr(source, "__constants__", ()):
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))


class _Stack(_InPlaceOf):
    """Layers over a sequence, with torch's calling convention; the time axis is unrolled."""

    batch_first: bool
    num_layers: int

    def __init__(self, source: nn.LSTM | nn.GRU, layers: Sequence[nn.Module]) -> None:
        super().__init__(source)
        self.layers = nn.ModuleList(layers)

    def flatten_parameters(self) -> None:
        """As torch's: about the memory of a GPU, nothing else."""

    def run(self, x: Tensor, states: Sequence[Carried | None]) -> tuple[Tensor, list[Carried]]:
        if not isinstance(x, Tensor) or x.dim() != 3:
            found = f"{x.dim()}-D input" if isinstance(x, Tensor) else type(x).__name__
            raise EdgeLstmError(
                "a torch recurrent module inside a step", found=found, expected="x [N, T, inputs]"
            )
        time = 1 if self.batch_first else 0
        carried = list(states)
        outputs = []
        for y in x.unbind(time):
            for layer, cell in enumerate(self.layers):
                carried[layer] = cell(y, carried[layer])
                y = carried[layer][0]  # type: ignore[index]
            outputs.append(y)
        return torch.stack(outputs, dim=time), [state for state in carried if state is not None]


class PlainLSTM(_Stack):
    """A unidirectional torch.nn.LSTM: ``(x, (h, c)) -> (y, (h, c))``, h and c [layers, N, ...]."""

    def __init__(self, source: nn.LSTM) -> None:
        super().__init__(source, [_lstm_layer(source, f"_l{k}") for k in range(source.num_layers)])

    def forward(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states = [None] * self.num_layers if hx is None else list(zip(*hx, strict=True))
        y, after = self.run(x, states)
        return y, (torch.stack([h for h, _ in after]), torch.stack([c for _, c in after]))


class PlainGRU(_Stack):
    """A unidirectional torch.nn.GRU: ``(x, h) -> (y, h)``, h [layers, N, hidden]."""

    def __init__(self, source: nn.GRU) -> None:
        super().__init__(source, [_gru_layer(source, f"_l{k}") for k in range(source.num_layers)])

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, after = self.run(x, [None] * self.num_layers if hx is None else [(h,) for h in hx])
        return y, torch.stack([h for (h,) in after])


class PlainLSTMCell(_InPlaceOf):
    """torch.nn.LSTMCell: ``(x, (h, c)) -> (h, c)``."""

    def __init__(self, source: nn.LSTMCell) -> None:
        super().__init__(source)
        self.layer = _lstm_layer(source)

    def forward(self, x: Tensor, hx: Carried | None = None) -> Carried:
        state: Carried = self.layer(x, hx)
        return state


class PlainGRUCell(_InPlaceOf):
    """torch.nn.GRUCell: ``(x, h) -> h``."""

    def __init__(self, source: nn.GRUCell) -> None:
        super().__init__(source)
        self.layer = _gru_layer(source)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        h: Tensor = self.layer(x, None if hx is None else (hx,))[0]
        return h


def _lstm_layer(source: nn.LSTM | nn.LSTMCell, suffix: str = "") -> _LSTMLayer:
    w_x, w_h, b_x, b_h, w_proj = _weights(source, suffix)
    bias = None if b_x is None or b_h is None else b_x + b_h
    return _LSTMLayer(w_x, w_h, bias, w_proj)


def _gru_layer(source: nn.GRU | nn.GRUCell, suffix: str = "") -> _GRULayer:
    w_x, w_h, b_x, b_h, _ = _weights(source, suffix)
    return _GRULayer(w_x, w_h, b_x, b_h, source.hidden_size)


def _weights(
    source: nn.Module, suffix: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """torch's tensors of one layer; None for those it is built without."""
    names = ("bias_ih", "bias_hh", "weight_hr")
    b_x, b_h, w_proj = (getattr(source, f"{name}{suffix}", None) for name in names)
    return getattr(source, f"weight_ih{suffix}"), getattr(source, f"weight_hh{suffix}"), b_x, b_h, w_proj


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)
