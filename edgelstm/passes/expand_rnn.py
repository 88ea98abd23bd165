"""expand_rnn: ONNX's LSTM, GRU and RNN operators, one step of them, become a Gemm and gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from edgelstm.graph.gates import DOMAIN
from edgelstm.graph.step import StepModel, value_shape
from edgelstm.passes.graph import Array, Graph
from edgelstm.passes.one_stream import value_of_one
from edgelstm.passes.rnn_operator import Activation, Direction, Inputs, RnnOperator, is_rnn, name_at, read_rnn
from edgelstm.passes.shapes import note_shapes

#: The order of FusedGates's z, and of z where f is 1 - i.
_ORDER, _COUPLED = "ifgo", "igo"


def expand_rnn(step: StepModel) -> StepModel:
    """Guarantees: the same Signature, the same numbers up to rounding, and no LSTM, GRU or RNN operator that is one step.

    Expanded is an operator over a sequence of one with constant weights and its initial states given, in any
    ``direction`` (over one frame all are the same). Of an LSTM, Y, Y_h and Y_c come from [W | R]·[x ; h] + b and
    FusedGates, peepholes, hard sigmoids, relus and ``input_forget`` included; ``clip`` bounds z first. What FusedGates
    has no variant for (other activations, clip together with peepholes), GRU and RNN become standard operators.
    ``sequence_lens`` of 1 changes nothing; where it varies, streams of length 0 get zeros, as in ONNX Runtime.

    Left as they are: longer sequences (windows), weights that vary, and activations of unknown parameters.

    Source: the operators LSTM, GRU and RNN of ONNX; see :class:`edgelstm.passes.rnn_operator.RnnOperator`.
    """
    graph = Graph(step)
    noted = note_shapes(step).model.graph
    shapes = {v.name: value_shape(v) for v in (*noted.input, *noted.value_info)}
    functions: list[onnx.FunctionProto] = []
    for node in [n for n in graph.nodes if is_rnn(n)]:
        operator = read_rnn(graph, node)
        x = shapes.get(node.input[Inputs.X])
        if operator is None or x is None or x[operator.time_axis] != 1 or not _has_states(operator):
            continue
        functions += _Expansion(graph, operator, _is_one(step, graph, node)).run()
    return graph.finish(functions)


def _has_states(operator: RnnOperator) -> bool:
    places = (Inputs.INITIAL_H, Inputs.INITIAL_C) if operator.kind == "LSTM" else (Inputs.INITIAL_H,)
    return all(name_at(operator.node.input, place) for place in places)


def _is_one(step: StepModel, graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether every sequence is known to be one frame long."""
    lengths = name_at(node.input, Inputs.SEQUENCE_LENS)
    value = value_of_one(step, graph, lengths) if lengths else np.ones(1)
    return value is not None and bool((value == 1).all())


class _Expansion:
    """One operator written anew."""

    def __init__(self, graph: Graph, operator: RnnOperator, all_active: bool) -> None:
        self.graph, self.op, self.node, self.all_active = graph, operator, operator.node, all_active
        self.base = next(name for name in self.node.output if name)
        self.functions: list[onnx.FunctionProto] = []

    def run(self) -> list[onnx.FunctionProto]:
        graph, op, inputs = self.graph, self.op, self.node.input
        graph.remove([self.node])
        x = self._squeeze(inputs[Inputs.X], [op.time_axis], f"{self.base}_x")
        h = self._states(inputs[Inputs.INITIAL_H], "h")
        c = self._states(inputs[Inputs.INITIAL_C], "c") if op.kind == "LSTM" else []
        after: list[list[str]] = []
        for k, direction in enumerate(op.directions):
            self.name = self.base if len(op.directions) == 1 else f"{self.base}_{k}"
            if op.kind == "LSTM":
                after.append(self._lstm(direction, x, h[k], c[k]))
            elif op.kind == "GRU":
                after.append([self._gru(direction, x, h[k])])
            else:
                after.append([self._act(direction.activations[0], self._product(direction, "h", [x, h[k]]))])
        after = [[self._where_active(value) for value in values] for values in after]
        self._write(after)
        return self.functions

    # -- the three cells ----------------------------------------------------------------------------------------------

    def _lstm(self, d: Direction, x: str, h: str, c: str) -> list[str]:
        variant = self.op.variant(d)
        z = self._product(d, _COUPLED if self.op.coupled else _ORDER, [x, h], clip=not d.p)
        if variant is None:
            return self._plain_lstm(d, z, c)
        self.functions.append(variant.function(self.graph.opset))
        p = [self.graph.weight(d.p[formal[-1]], f"{self.name}_{formal}") for formal in variant.inputs[2:]]
        after = [self.graph.fresh(f"{self.name}_{state}_next") for state in "hc"]
        self.graph.node(variant.op_type, [z, c, *p], after, domain=DOMAIN)
        return after

    def _plain_lstm(self, d: Direction, z: str, c: str) -> list[str]:
        """i, f = f(z + p c); c' = f c + i g(z); o = f(z + p c'); h = o h(c')."""
        order = _COUPLED if self.op.coupled else _ORDER
        parts = dict(zip(order, self._split(z, len(order)), strict=True))
        gate, candidate, output = d.activations

        def gated(name: str, state: str) -> str:
            value = parts[name]
            if d.p:
                p = self.graph.weight(d.p[name], f"{self.name}_p_{name}")
                value = self._value("Add", [value, self._value("Mul", [state, p], f"pc_{name}")], f"z_{name}")
                value = self._clip(value)
            return self._act(gate, value)

        i = gated("i", c)
        f = self._value("Sub", [self._number(1.0), i], "f") if self.op.coupled else gated("f", c)
        g = self._act(candidate, parts["g"] if not d.p else self._clip(parts["g"]))
        kept, written = self._value("Mul", [f, c], "kept"), self._value("Mul", [i, g], "written")
        c_next = self._value("Add", [kept, written], "c_next")
        o = gated("o", c_next)
        return [self._value("Mul", [o, self._act(output, c_next)], "h_next"), c_next]

    def _gru(self, d: Direction, x: str, h: str) -> str:
        """z, r; n = g(W x + R (r h)), or with linear_before_reset g(W x + r (R h)); h' = n + z (h - n)."""
        gate, candidate = d.activations
        z, r = self._split(self._act(gate, self._product(d, "zr", [x, h])), 2)
        if self.op.linear_before_reset:
            from_x = self._gemm(x, d.w["h"], d.wb["h"], "candidate_x")
            from_h = self._gemm(h, d.r["h"], d.rb["h"], "candidate_h")
            inner = self._clip(
                self._value("Add", [from_x, self._value("Mul", [r, from_h], "reset")], "candidate")
            )
        else:
            inner = self._product(d, "h", [x, self._value("Mul", [r, h], "reset")])
        n = self._act(candidate, inner)
        kept = self._value("Mul", [z, self._value("Sub", [h, n], "change")], "kept")
        return self._value("Add", [n, kept], "h_next")

    # -- their parts --------------------------------------------------------------------------------------------------

    def _product(self, d: Direction, gates: str, values: Sequence[str], *, clip: bool = True) -> str:
        """[W | R]·[x ; h] + b of some gates, in that order, [N, len(gates) H]; clipped as the operator says."""
        weight = np.concatenate([np.concatenate([d.w[gate], d.r[gate]], axis=1) for gate in gates])
        bias = np.concatenate([d.bias(gate) for gate in gates])
        label = "" if self.op.kind == "LSTM" else f"_{gates}"
        joined = self._value("Concat", values, f"inputs{label}", axis=1)
        z = self._gemm(joined, weight, bias, f"gates{label}")
        return self._clip(z) if clip else z

    def _gemm(self, value: str, weight: Array, bias: Array, label: str) -> str:
        names = [
            self.graph.weight(a, f"{self.name}_{label}_{n}") for a, n in ((weight, "weight"), (bias, "bias"))
        ]
        return self._value("Gemm", [value, *names], label, transB=1)

    def _act(self, activation: Activation, value: str) -> str:
        name, alpha, beta = activation.name, activation.alpha, activation.beta
        label = name.lower()
        if name == "Affine":
            return self._affine(value, alpha, beta, label)
        if name == "ScaledTanh":
            inner = self._affine(value, beta, None, f"{label}_in")
            return self._affine(self._value("Tanh", [inner], f"{label}_tanh"), alpha, None, label)
        given = {key: v for key, v in (("alpha", alpha), ("beta", beta)) if v is not None}
        return self._value(name, [value], label, **given)

    def _affine(self, value: str, scale: float | None, shift: float | None, label: str) -> str:
        if scale is not None:
            value = self._value("Mul", [value, self._number(scale)], f"{label}_scaled")
        return value if shift is None else self._value("Add", [value, self._number(shift)], label)

    def _clip(self, value: str) -> str:
        limit = self.op.clip
        if limit is None:
            return value
        if self.graph.opset < 11:
            return self._value("Clip", [value], "clipped", min=-limit, max=limit)
        return self._value("Clip", [value, self._number(-limit), self._number(limit)], "clipped")

    def _split(self, value: str, count: int) -> list[str]:
        names = [self.graph.fresh(f"{self.name}_part") for _ in range(count)]
        extra: dict[str, Any] = {"num_outputs": count} if self.graph.opset >= 18 else {}
        self.graph.node("Split", [value], names, axis=1, **extra)
        return names

    def _value(self, op_type: str, inputs: Sequence[str], label: str, **attributes: object) -> str:
        return self.graph.value(op_type, inputs, f"{self.name}_{label}", **attributes)

    def _number(self, value: float) -> str:
        dtype = self.op.directions[0].w[next(iter(self.op.directions[0].w))].dtype
        return self.graph.weight(np.array(value, dtype), f"{self.base}_number")

    # -- the operator's edges -----------------------------------------------------------------------------------------

    def _states(self, value: str, label: str) -> list[str]:
        """The state of each direction, [N, H]."""
        axis, count = self.op.time_axis, len(self.op.directions)
        if count == 1:
            return [self._squeeze(value, [axis], f"{self.base}_{label}")]
        # A Gather of one place is what the passes that follow look through.
        return [
            self.graph.value(
                "Gather",
                [value, self.graph.weight(np.array(k, np.int64), f"{self.base}_direction")],
                f"{self.base}_{label}_{k}",
                axis=axis,
            )
            for k in range(count)
        ]

    def _where_active(self, value: str) -> str:
        """Zeros for streams whose sequence is empty."""
        if self.all_active:
            return value
        lengths = self.node.input[Inputs.SEQUENCE_LENS]
        zero = self.graph.weight(np.array(0, np.int32), f"{self.base}_none")
        active = self._value("Greater", [lengths, zero], "active")
        return self._value(
            "Where", [self._axes("Unsqueeze", active, [1]), value, self._number(0.0)], "or_zero"
        )

    def _write(self, after: list[list[str]]) -> None:
        """Y [T, D, N, H], or [N, T, D, H] with layout 1; Y_h and Y_c [D, N, H], or [N, D, H]."""
        time = self.op.time_axis
        for place, which in ((0, 0), (1, 0), (2, 1)):
            output = name_at(self.node.output, place)
            if not output:
                continue
            values = [states[which] for states in after]
            if len(values) == 1:
                axes = [time] if place else [time, time + 1]
                self._axes("Unsqueeze", values[0], axes, output)
                continue
            stacked = [self._axes("Unsqueeze", value, [time]) for value in values]
            if place:
                self.graph.node("Concat", stacked, [output], axis=time)
            else:
                both = self._value("Concat", stacked, "directions", axis=time)
                self._axes("Unsqueeze", both, [time], output)

    def _squeeze(self, value: str, axes: list[int], name: str) -> str:
        return self._axes("Squeeze", value, axes, self.graph.fresh(name))

    def _axes(self, op_type: str, value: str, axes: list[int], output: str | None = None) -> str:
        """Squeeze or Unsqueeze; before opset 13 the axes are an attribute."""
        output = output or self.graph.fresh(f"{value}_axis")
        if self.graph.opset < 13:
            self.graph.node(op_type, [value], [output], axes=axes)
        else:
            places = self.graph.weight(np.array(axes, np.int64), f"{output}_axes")
            self.graph.node(op_type, [value, places], [output])
        return output
