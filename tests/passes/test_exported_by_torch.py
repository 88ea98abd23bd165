"""Cells as people write them in PyTorch, exported by PyTorch: one product and one FusedGates each."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest

from edgelstm.frontends.onnx.file import declare
from edgelstm.graph.step import StepModel
from edgelstm.passes.fuse_gates import fuse_gates
from edgelstm.passes.join_inputs import join_inputs
from edgelstm.passes.simplify import simplify
from stepping import Stepper
from tolerances import assert_close

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

HIDDEN, INPUTS, SIZE = 3, 2, 5


class Cell(torch.nn.Module):
    """An LSTM or ConvLSTM cell; the subclasses differ in how the gates come about."""

    def __init__(
        self, order: str = "ifgo", conv: bool = False, peephole: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.order, self.conv = order, conv
        self.xh = self.layer(INPUTS + HIDDEN, 4 * HIDDEN, bias)
        shape = (1, HIDDEN, SIZE, SIZE) if conv else (HIDDEN,)
        self.p = torch.nn.Parameter(torch.randn(3, *shape) * 0.5) if peephole else None

    def layer(self, inputs: int, outputs: int, bias: bool) -> torch.nn.Module:
        return (
            torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
            if self.conv
            else torch.nn.Linear(inputs, outputs, bias)
        )

    def gates(self, x: Any, h: Any) -> Any:
        return self.xh(torch.cat([x, h], 1)).chunk(4, 1)

    def forward(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        z = dict(zip(self.order, self.gates(x, h), strict=True))
        if self.p is not None:
            z["i"], z["f"] = z["i"] + self.p[0] * c, z["f"] + c * self.p[1]
        i, f, g = torch.sigmoid(z["i"]), torch.sigmoid(z["f"]), torch.tanh(z["g"])
        c = f * c + i * g
        o = torch.sigmoid(z["o"] if self.p is None else z["o"] + self.p[2] * c)
        return o * torch.tanh(c), c


class Split(Cell):
    def gates(self, x: Any, h: Any) -> Any:
        return torch.split(self.xh(torch.cat([x, h], dim=1)), HIDDEN, dim=1)


class TwoProducts(Cell):
    """As torch.nn.LSTMCell and many ConvLSTMs: one product over x, one over h, both cut."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.x, self.h = self.layer(INPUTS, 4 * HIDDEN, True), self.layer(HIDDEN, 4 * HIDDEN, False)
        del self.xh

    def gates(self, x: Any, h: Any) -> Any:
        return [a + b for a, b in zip(self.x(x).chunk(4, 1), self.h(h).chunk(4, 1), strict=True)]


class EightProducts(Cell):
    """As the first ConvLSTM for PyTorch to be widely copied: Wxi, Whi, Wxf, ..."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.x = torch.nn.ModuleList(self.layer(INPUTS, HIDDEN, True) for _ in range(4))
        self.h = torch.nn.ModuleList(self.layer(HIDDEN, HIDDEN, False) for _ in range(4))
        del self.xh

    def gates(self, x: Any, h: Any) -> Any:
        return [a(x) + b(h) for a, b in zip(self.x, self.h, strict=True)]


class Sliced(Cell):
    def gates(self, x: Any, h: Any) -> Any:
        z = self.xh(torch.cat([x, h], 1))
        return [z[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(4)]


class LstmCell(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.LSTMCell(INPUTS, HIDDEN)

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        return self.cell(x, (h, c))


def export(module: Any, conv: bool, dynamo: bool) -> StepModel:
    size = (SIZE, SIZE) if conv else ()
    args = tuple(torch.randn(2, width, *size) for width in (INPUTS, HIDDEN, HIDDEN))
    names = {"input_names": ["x", "h", "c"], "output_names": ["h_next", "c_next"]}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = {0: torch.export.Dim("N", max=1 << 20)}
            program = torch.onnx.export(
                module.eval(), args, dynamo=True, dynamic_shapes=(batch,) * 3, verbose=False, **names
            )
            program.save(file)
        else:
            axes = {name: {0: "N"} for side in names.values() for name in side}
            torch.onnx.export(module.eval(), args, file, dynamo=False, dynamic_axes=axes, **names)
    return declare(file.getvalue(), "exported.onnx", {"h": "h_next", "c": "c_next"})


CELLS = {
    "ifgo": Cell(),
    "conv ifgo": Cell(conv=True),
    "conv ifog without bias": Split("ifog", conv=True, bias=False),
    "conv fiog peephole": Cell("fiog", conv=True, peephole=True),
    "oigf peephole sliced": Sliced("oigf", peephole=True),
    "two products": TwoProducts("ifog"),
    "conv two products peephole": TwoProducts("ifog", conv=True, peephole=True),
    "eight products": EightProducts("ifog"),
    "conv eight products peephole": EightProducts("ifgo", conv=True, peephole=True),
    "nn.LSTMCell": LstmCell(),
}


#: The newer exporter takes most of a second for each: vectors and maps, with peepholes and without, of one product and of many.
NEWER = ("ifgo", "conv fiog peephole", "two products", "conv eight products peephole", "nn.LSTMCell")


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        *(pytest.param(n, True, marks=() if n in NEWER else pytest.mark.thorough) for n in CELLS),
        *((n, False) for n in CELLS),
    ],
)
def test_an_exported_cell_becomes_one_product_and_one_fused_gates(name: str, dynamo: bool) -> None:
    conv = name.startswith("conv")
    step = export(CELLS[name], conv, dynamo)
    fused = join_inputs(fuse_gates(simplify(step)))
    op = "FusedGates_peephole" if "peephole" in name else "FusedGates_lstm"
    assert fused.op_types() == ["Concat", "Conv" if conv else "Gemm", op]
    a, b = Stepper(step), Stepper(fused)
    states, others = a.initial(2), b.initial(2)
    rng = np.random.default_rng(0)
    for _ in range(10):
        x = {"x": rng.normal(size=(2, *step.signature.inputs[0].frame_shape)).astype(np.float32)}
        (_, states), (_, others) = a(x, states), b(x, others)
        for state, value in states.items():
            assert_close(others[state], value, "float32")
