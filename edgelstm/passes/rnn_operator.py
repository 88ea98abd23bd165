"""ONNX's recurrent operators LSTM, GRU and RNN as data: what a node says, defaults filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgelstm.graph.gates import CellActivation, GateActivation, GateVariant
from edgelstm.passes.graph import Array, Graph, attribute, is_standard

#: Rows of W, R and B, gate by gate, as the operators have them.
GATES = {"LSTM": "iofg", "GRU": "zrh", "RNN": "h"}
#: The activations of one direction where the node names none.
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
#: Activations that take parameters: alpha and beta where not given. None: there is no default that all runtimes share.
_PARAMETERS: dict[str, tuple[float | None, ...]] = {
    "Affine": (None, None),
    "LeakyRelu": (0.01,),
    "ThresholdedRelu": (None,),
    "ScaledTanh": (None, None),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0,),
}
_PLAIN = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")
_NAMES = {name.lower(): name for name in (*_PARAMETERS, *_PLAIN)}
_CELL_ACTIVATIONS: dict[str, CellActivation] = {"Tanh": "tanh", "Relu": "relu"}
_GATE_ACTIVATIONS: dict[str, GateActivation] = {"Sigmoid": "sigmoid", "HardSigmoid": "hard_sigmoid"}


@dataclass(frozen=True)
class Activation:
    """One of the operators' activation functions; alpha and beta are None where it takes none."""

    name: str
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Direction:
    """One direction's weights by gate.

    w[gate] [H, inputs], r[gate] [H, H], wb[gate] and rb[gate] [H] (zeros without B), p[gate] [H] (empty without P);
    activations f, g, h as the operator has them.
    """

    w: dict[str, Array]
    r: dict[str, Array]
    wb: dict[str, Array]
    rb: dict[str, Array]
    p: dict[str, Array]
    activations: tuple[Activation, ...]

    def bias(self, gate: str) -> Array:
        """Wb + Rb, summed in float32 at least."""
        total: Array = self.wb[gate] + self.rb[gate]
        if total.dtype.itemsize < 4:
            total = (self.wb[gate].astype(np.float32) + self.rb[gate].astype(np.float32)).astype(total.dtype)
        return total


@dataclass(frozen=True)
class Inputs:
    """Places of the operators' inputs; outputs are Y, Y_h and, of an LSTM, Y_c."""

    X, W, R, B, SEQUENCE_LENS, INITIAL_H, INITIAL_C, P = range(8)


@dataclass(frozen=True)
class RnnOperator:
    """A node of one of the three operators, its weights constant.

    Source: the operators LSTM, GRU and RNN of ONNX, versions 7, 14 and 22. X [T, N, inputs], Y [T, D, N, H], states
    [D, N, H]; with ``layout`` 1 X [N, T, inputs], Y [N, T, D, H], states [N, D, H]. ``clip`` bounds what goes into the
    gates' activations (not c). ``coupled``: input_forget, f = 1 - i.
    """

    node: onnx.NodeProto
    directions: tuple[Direction, ...]
    hidden: int
    clip: float | None
    coupled: bool
    linear_before_reset: bool
    layout: int

    @property
    def kind(self) -> str:
        """LSTM, GRU or RNN."""
        return str(self.node.op_type)

    @property
    def time_axis(self) -> int:
        """Axis of X that is time; it is also the states' axis for directions, and N takes the other one."""
        return self.layout

    def variant(self, direction: Direction) -> GateVariant | None:
        """The FusedGates that computes one step of an LSTM; None where there is none."""
        if self.kind != "LSTM" or (self.clip is not None and direction.p):
            return None
        gate, candidate, output = direction.activations
        if (
            gate.name not in _GATE_ACTIVATIONS
            or not {candidate.name, output.name} <= _CELL_ACTIVATIONS.keys()
        ):
            return None
        hard = gate.name == "HardSigmoid"
        return GateVariant(
            peephole=bool(direction.p),
            gate=_GATE_ACTIVATIONS[gate.name],
            alpha=gate.alpha if hard and gate.alpha is not None else 0.2,
            beta=gate.beta if hard and gate.beta is not None else 0.5,
            candidate=_CELL_ACTIVATIONS[candidate.name],
            output=_CELL_ACTIVATIONS[output.name],
            coupled=self.coupled,
        )


def is_rnn(node: onnx.NodeProto) -> bool:
    """Whether the node is one of the three operators."""
    return node.op_type in GATES and is_standard(node)


def name_at(names: Sequence[str], place: int) -> str:
    """The input or output at ``place``, "" where it is left out."""
    return names[place] if len(names) > place else ""


def is_forward(node: onnx.NodeProto) -> bool:
    """Whether the operator looks at the past only."""
    return bool(attribute(node, "direction", b"forward") == b"forward")


def read_rnn(graph: Graph, node: onnx.NodeProto) -> RnnOperator | None:
    """What ``node`` says; None where weights vary, sizes disagree, or an activation or its parameters are not known.

    Affine, ThresholdedRelu and ScaledTanh without their parameters count as not known: runtimes disagree about them.
    """
    kind, gates = node.op_type, GATES[node.op_type]
    w, r = graph.constant(node.input[Inputs.W]), graph.constant(node.input[Inputs.R])
    if w is None or r is None or w.ndim != 3 or r.ndim != 3:
        return None
    d, hidden = r.shape[0], r.shape[-1]
    optional = []
    for place, rows in ((Inputs.B, 2 * len(gates)), (Inputs.P, 3)):
        name = name_at(node.input, place) if kind == "LSTM" or place == Inputs.B else ""
        value = (
            graph.constant(name)
            if name
            else np.zeros((d, 0 if place == Inputs.P else rows * hidden), w.dtype)
        )
        if value is None or (name and value.shape != (d, rows * hidden)):
            return None
        optional.append(value)
    sizes = w.shape[:2] == r.shape[:2] == (d, len(gates) * hidden)
    bidirectional = attribute(node, "direction", b"forward") == b"bidirectional"
    activations = _activations(node, d)
    clip = attribute(node, "clip")
    if not sizes or d != 1 + bidirectional or activations is None or (clip is not None and not clip > 0):
        return None
    bias, peepholes = optional
    directions = []
    for k in range(d):
        halves = np.split(bias[k], 2)
        directions.append(
            Direction(
                _by_gate(w[k], gates),
                _by_gate(r[k], gates),
                _by_gate(halves[0], gates),
                _by_gate(halves[1], gates),
                _by_gate(peepholes[k], "iof") if peepholes.size else {},
                activations[k],
            )
        )
    return RnnOperator(
        node,
        tuple(directions),
        hidden,
        None if clip is None else float(clip),
        bool(attribute(node, "input_forget", 0)),
        bool(attribute(node, "linear_before_reset", 0)),
        int(attribute(node, "layout", 0)),
    )


def _by_gate(rows: Array, gates: str) -> dict[str, Array]:
    return dict(zip(gates, np.split(rows, len(gates)), strict=True))


def _activations(node: onnx.NodeProto, directions: int) -> list[tuple[Activation, ...]] | None:
    """The activations of each direction. Only those that take a parameter use one up, in order."""
    defaults = _DEFAULTS[node.op_type] * directions
    named = [a.decode(errors="replace") for a in attribute(node, "activations", [])]
    names = [_NAMES.get(name.lower(), "") for name in named] or list(defaults)
    if len(names) != len(defaults) or "" in names:
        return None
    given = [iter(attribute(node, f"activation_{which}", [])) for which in ("alpha", "beta")]
    found = []
    for name in names:
        values = [
            next(rest, default) for rest, default in zip(given, _PARAMETERS.get(name, ()), strict=False)
        ]
        numbers = [_decimal(float(v)) for v in values if v is not None]
        if len(numbers) != len(values):
            return None
        found.append(Activation(name, *numbers))
    each = len(found) // directions
    return [tuple(found[k * each : (k + 1) * each]) for k in range(directions)]


def _decimal(value: float) -> float:
    """The shortest decimal that is the same float32: attributes are stored as float32, variants are named in decimals."""
    return float(str(np.float32(value)))
