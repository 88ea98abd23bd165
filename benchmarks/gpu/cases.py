"""The models that are measured on a GPU: seeded random weights, as a step graph, a torch module and torch.nn.LSTM.

Nothing here needs more than NumPy and onnx (the graphs) or PyTorch (the modules), which a lent machine has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.frontends.described.architecture import ConvLstm, Lstm
from edgelstm.frontends.described.graph import Described, to_step
from edgelstm.graph.step import StepModel
from edgelstm.passes.lower import lower

if TYPE_CHECKING:
    from torch import nn

    from edgelstm.frontends.torch.nn import StepModule

INPUTS = 16
PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Case:
    """A model: how tables call it, its architecture, and the steps of one turn at one stream."""

    title: str
    architecture: ConvLstm | Lstm
    steps: int

    @property
    def is_lstm(self) -> bool:
        """Whether torch.nn.LSTM, and so cuDNN, has it."""
        return isinstance(self.architecture, Lstm)

    def weights(self) -> dict[str, Any]:
        """Float32 arrays by name, drawn as PyTorch draws them: uniform within 1 / sqrt(inputs of a neuron)."""
        rng = np.random.default_rng(0)
        tensors = self.architecture.tensors()
        bounds = {
            name.rpartition(".")[0]: np.prod(shape[1:]) ** -0.5
            for name, shape in tensors.items()
            if shape[1:]
        }
        return {
            name: rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(bounds[name.rpartition(".")[0]])
            for name, shape in tensors.items()
        }


CASES = {
    "conv_lstm": Case("ConvLSTM 16 -> 64, 3x3, 64x64", ConvLstm(INPUTS, (64,), 3, (64, 64)), 200),
    "lstm_256": Case("LSTM 2 x 256", Lstm(INPUTS, (256, 256)), 500),
    "lstm_1024": Case("LSTM 2 x 1024", Lstm(INPUTS, (1024, 1024)), 300),
}
#: Small ones of the same kinds, to try the whole path.
QUICK = {
    "conv_lstm": Case("ConvLSTM 4 -> 8, 3x3, 16x16", ConvLstm(4, (8,), 3, (16, 16)), 20),
    "lstm_32": Case("LSTM 2 x 32", Lstm(INPUTS, (32, 32)), 20),
}


@dataclass(frozen=True)
class Files:
    """Of one case: graph for our runtimes, the same without functions for others, weights; and the Signature's text."""

    model: Path
    plain: Path
    weights: Path
    signature: str


def write(case: Case, precision: str, folder: Path) -> Files:
    """Write what the contestants open. Precision fp16: products and h in fp16, gates and c in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = case.weights()
    step: StepModel = to_step(Described(case.architecture, weights))
    if precision == "fp16":
        from edgelstm.quantize.precision import to_half

        step = to_half(step, "fp16", "tensorrt")
    files = Files(
        folder / "model.onnx", folder / "plain.onnx", folder / "weights.npz", step.signature.dumps()
    )
    step.save(files.model)
    lower(step, "openvino").save(files.plain)
    np.savez(files.weights, allow_pickle=False, **weights)
    return files


def load_weights(path: str | Path) -> dict[str, Any]:
    """What :func:`write` kept."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def torch_module(architecture: ConvLstm | Lstm, weights: Mapping[str, Any]) -> StepModule:
    """The step module: one convolution or Linear over x and h, then the gates as PyTorch operators."""
    import torch

    from edgelstm.frontends.torch import nn as edgelstm_nn

    module: StepModule
    if isinstance(architecture, ConvLstm):
        a = architecture
        module = edgelstm_nn.ConvLSTM(a.channels, list(a.hidden), size=a.size, kernel=a.kernel)
    else:
        module = edgelstm_nn.LSTM(architecture.inputs, list(architecture.hidden))
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return module.eval().requires_grad_(False)


def torch_lstm(architecture: Lstm, weights: Mapping[str, Any]) -> nn.LSTM:
    """The same model as torch.nn.LSTM, which cuDNN runs on a GPU."""
    import torch

    hidden = architecture.hidden[0]
    module = torch.nn.LSTM(architecture.inputs, hidden, num_layers=len(architecture.hidden))
    with torch.no_grad():
        for layer, cell in enumerate(architecture.cells):
            joined = torch.from_numpy(weights[f"{cell.name}.weight"])
            getattr(module, f"weight_ih_l{layer}").copy_(joined[:, : cell.inputs])
            getattr(module, f"weight_hh_l{layer}").copy_(joined[:, cell.inputs :])
            getattr(module, f"bias_ih_l{layer}").copy_(torch.from_numpy(weights[f"{cell.name}.bias"]))
            getattr(module, f"bias_hh_l{layer}").zero_()
    return module.eval().requires_grad_(False)
