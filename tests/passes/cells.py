"""One LSTM cell written in each of the ways exporters write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from edgelstm.graph.gates import GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step

PLAIN = GateVariant()


@dataclass(frozen=True)
class Written:
    """How a cell is written; ``flips`` decides the order of the operands of each Add and Mul, bit by bit."""

    variant: GateVariant = PLAIN
    order: tuple[str, ...] = ("i", "f", "g", "o")
    cut: str = "split"  # "split", "slice", or "apart": one product a gate
    product: str = "Gemm"  # "Gemm", "MatMul" or "Conv"
    spatial: tuple[int, ...] = ()
    spelling: str = "op"  # of the hard sigmoid: "op", "keras" (0.2x + 0.5) or "relu6" ((x + 3) / 6)
    joined: bool = True  # one product over Concat(x, h), or one over each
    forget_bias: float = 0.0
    channels: int = 3
    inputs: int = 2
    flips: int = 0
    dtype: str = "float64"
    seed: int = 0

    def build(self) -> StepModel:
        return _Writer(self).build()


class _Writer:
    def __init__(self, how: Written) -> None:
        self.how, self.flips = how, how.flips
        self.rng = np.random.default_rng(how.seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def build(self) -> StepModel:
        how, v = self.how, self.how.variant
        shape = ("N", how.channels, *how.spatial)
        z = self.pre_activations()
        p = {g: self.peephole() for g in ("i", "f", "o") if v.peephole and g in how.order}
        i = self.gate(self.seen("i", z, p, "c"))
        if v.coupled:
            f = self.op("Sub", self.constant(np.array(1.0)), i)
        else:
            z_f = (
                self.op("Add", z["f"], self.constant(np.array(how.forget_bias)))
                if how.forget_bias
                else z["f"]
            )
            f = self.gate(self.seen("f", z | {"f": z_f}, p, "c"))
        g = self.op(v.candidate.capitalize(), z["g"])
        total = self.op(
            "Add", self.op("Mul", f, "c"), self.op("Mul", i, g), to=v.cell_clip is None and "c_next"
        )
        if v.cell_clip is not None:
            limits = [self.constant(np.array(sign * v.cell_clip)) for sign in (-1, 1)]
            self.op("Clip", total, *limits, to="c_next")
        o = self.gate(self.seen("o", z, p, "c_next"))
        self.op("Mul", o, self.op(v.output.capitalize(), "c_next"), to="h_next")
        states = tuple(StateSpec(s, s, f"{s}_next", how.dtype, shape) for s in ("h", "c"))
        x = TensorSpec("x", how.dtype, ("N", how.inputs, *how.spatial))
        return make_step(self.nodes, Signature((x,), (), states), self.weights)

    def pre_activations(self) -> dict[str, str]:
        how = self.how
        if how.cut == "apart":
            return {gate: self.sum(1) for gate in how.order}
        z = self.sum(len(how.order))
        names = [f"z_{gate}" for gate in how.order]
        if how.cut == "split":
            self.nodes.append(helper.make_node("Split", [z], names, axis=1, num_outputs=len(names)))
        else:
            for k, name in enumerate(names):
                ends = [self.constant(np.array([n * how.channels])) for n in (k, k + 1)]
                self.op("Slice", z, *ends, self.constant(np.array([1])), to=name)
        return {gate: f"z_{gate}" for gate in how.order}

    def sum(self, gates: int) -> str:
        how, outputs = self.how, gates * self.how.channels
        if how.joined:
            if not self.nodes:
                self.op("Concat", "x", "h", axis=1, to="xh")
            return self.product("xh", how.inputs + how.channels, outputs, bias=True)
        return self.op(
            "Add", self.product("x", how.inputs, outputs, bias=True), self.product("h", how.channels, outputs)
        )

    def product(self, value: str, inputs: int, outputs: int, bias: bool = False) -> str:
        how = self.how
        b = self.rng.normal(0, 0.5, outputs)
        if how.product == "Conv":
            w = self.constant(self.rng.normal(0, 0.3, (outputs, inputs, *[3] * len(how.spatial))))
            pads = [1] * 2 * len(how.spatial)
            return self.op("Conv", value, w, *([self.constant(b)] if bias else []), pads=pads)
        w = self.constant(self.rng.normal(0, 0.5, (inputs, outputs)))
        if how.product == "Gemm":
            return self.op("Gemm", value, w, *([self.constant(b)] if bias else []))
        product = self.op("MatMul", value, w)
        return self.op("Add", product, self.constant(b)) if bias else product

    def peephole(self) -> str:
        shape = (self.how.channels, *self.how.spatial)
        return self.constant(self.rng.normal(0, 0.5, (1, *shape) if self.rng.random() < 0.5 else shape))

    def seen(self, gate: str, z: dict[str, str], p: dict[str, str], state: str) -> str:
        return self.op("Add", z[gate], self.op("Mul", p[gate], state)) if gate in p else z[gate]

    def gate(self, x: str) -> str:
        v = self.how.variant
        if v.gate == "sigmoid":
            return self.op("Sigmoid", x)
        if self.how.spelling == "op":
            return self.op("HardSigmoid", x, alpha=v.alpha, beta=v.beta)
        number = {n: self.constant(np.array(n)) for n in (v.alpha, v.beta, 0.0, 1.0, 3.0, 6.0)}
        if self.how.spelling == "keras":
            return self.op(
                "Clip",
                self.op("Add", self.op("Mul", x, number[v.alpha]), number[v.beta]),
                number[0.0],
                number[1.0],
            )
        return self.op(
            "Div", self.op("Clip", self.op("Add", x, number[3.0]), number[0.0], number[6.0]), number[6.0]
        )

    def op(self, op: str, *inputs: str, to: str | bool = False, **attributes: Any) -> str:
        if op in ("Add", "Mul"):
            self.flips, flip = self.flips >> 1, self.flips & 1
            inputs = inputs[::-1] if flip else inputs
        output = to or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return str(output)

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        if value.dtype.kind == "f":
            value = value.astype(self.how.dtype)
        self.weights.append(numpy_helper.from_array(value, name))
        return name
