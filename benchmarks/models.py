"""The models that are measured: seeded random weights, made anew every time, so that none has to be kept.

A model's speed does not depend on what it was trained for, only on its shape and on its values being ordinary ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgelstm.frontends.torch import nn as edgelstm_nn

#: The sizes of the LSTM pair: as many inputs as a plant has sensors.
LSTM_INPUTS = 16
LSTM_HIDDEN = (32, 256, 1024)


def conv_lstm(folder: Path, size: int = 64) -> Path:
    """The reference ConvLSTM cell: 16 -> 64 channels, 3x3, on 64x64 maps (or others); about 1.5 GFLOP a step."""
    torch.manual_seed(0)
    path = folder / ("conv_lstm.safetensors" if size == 64 else f"conv_lstm_{size}.safetensors")
    edgelstm_nn.save(edgelstm_nn.ConvLSTM(16, [64], size=(size, size), kernel=3), path)
    return path


def conv_lstm_plain_export(folder: Path) -> Path:
    """What torch.onnx.export makes of the same cell, at a fixed number of streams, the names as in our graph."""

    class Distinct(torch.nn.Module):
        """The new h is both output and state: give it once."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            y, (_, c) = self.module(x, h, c)
            return y, c

    module = edgelstm_nn.load(conv_lstm(folder))
    states = module.initial_states()
    path = folder / "conv_lstm_plain.onnx"
    torch.onnx.export(
        Distinct(module).eval(),
        (torch.zeros(1, 16, 64, 64), *states),
        path,
        input_names=["x", "h0", "c0"],
        output_names=["y", "c0_next"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path


def lstm(folder: Path, hidden: int) -> Path:
    """The weights of :func:`torch_lstm`, joined as our cells keep them."""
    source = torch_lstm(hidden)
    module = edgelstm_nn.LSTM(LSTM_INPUTS, [hidden, hidden])
    with torch.no_grad():
        for layer, cell in enumerate(module.cells):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(source, f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            cell.weight.copy_(torch.cat([w_ih, w_hh], dim=1))
            cell.bias.copy_(b_ih + b_hh)
    path = folder / f"lstm_{hidden}.safetensors"
    edgelstm_nn.save(module, path)
    return path


def torch_lstm(hidden: int) -> torch.nn.LSTM:
    """Two layers of torch.nn.LSTM."""
    torch.manual_seed(hidden)
    return torch.nn.LSTM(LSTM_INPUTS, hidden, num_layers=2)


def torch_lstm_32() -> torch.nn.LSTM:
    """``--module models:torch_lstm_32``"""
    return torch_lstm(32)


def torch_lstm_256() -> torch.nn.LSTM:
    """``--module models:torch_lstm_256``"""
    return torch_lstm(256)


def torch_lstm_1024() -> torch.nn.LSTM:
    """``--module models:torch_lstm_1024``"""
    return torch_lstm(1024)


def gru(folder: Path, hidden: int) -> Path:
    """The step graph of two layers of torch.nn.GRU, as `edgelstm export` makes it."""
    from edgelstm import export

    torch.manual_seed(hidden)
    path = folder / f"gru_{hidden}.onnx"
    export(torch.nn.GRU(LSTM_INPUTS, hidden, num_layers=2).eval(), path, frame=(LSTM_INPUTS,), limit=20)
    return path


class ConvGru(torch.nn.Module):
    """A ConvGRU's cell as RobustVideoMatting writes it, the reset gate before the candidate's convolution: 16 -> 64 channels, 3x3."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gates = torch.nn.Conv2d(16 + 64, 2 * 64, 3, padding=1)
        self.candidate = torch.nn.Conv2d(16 + 64, 64, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if h is None:
            h = x.new_zeros(x.shape[0], 64, x.shape[2], x.shape[3])
        r, z = torch.sigmoid(self.gates(torch.cat([x, h], 1))).split(64, 1)
        n = torch.tanh(self.candidate(torch.cat([x, r * h], 1)))
        h = (1 - z) * h + z * n
        return h, h


def torch_conv_gru() -> torch.nn.Module:
    """``--module benchmarks/models.py:torch_conv_gru``"""
    return ConvGru().eval()


def conv_gru(folder: Path) -> Path:
    """Its step graph on 64x64 maps; about 1.1 GFLOP a step."""
    from edgelstm import export

    path = folder / "conv_gru.onnx"
    export(torch_conv_gru(), path, frame=(16, 64, 64), limit=3)
    return path
