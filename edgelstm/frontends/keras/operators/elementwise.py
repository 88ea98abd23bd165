"""Operators that work number by number, on one tensor or on several of one shape, and constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.activations import Activation
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value, mixes_rows
from edgelstm.frontends.keras.calls import Slot
from edgelstm.frontends.keras.layers.elementwise import aligned, broadcast, waited
from edgelstm.frontends.keras.layers.layer import Memory, Tensor, same_time
from edgelstm.frontends.keras.operators.operator import OneOperator, Operator
from edgelstm.frontends.keras.options import Options


@dataclass(frozen=True)
class Function:
    """An operator: its form in a graph, in NumPy, and what it makes of types.

    result: ``float`` (always), ``same`` (the operands' common type) or ``bool``; ``logic`` takes and gives bool.
    """

    emit: Callable[[Builder, Sequence[str], str], str]
    compute: Callable[..., Any]
    result: str = "float"
    parameters: tuple[str, ...] = ("x",)


def _op(name: str) -> Callable[[Builder, Sequence[str], str], str]:
    return lambda g, x, base: g.op(name, x, base)


def _after(*names: str) -> Callable[[Builder, Sequence[str], str], str]:
    """Operators one after the other."""

    def emit(g: Builder, x: Sequence[str], base: str) -> str:
        found = list(x)
        for name in names:
            found = [g.op(name, found, base)]
        return found[0]

    return emit


def _with(name: str, number: float, first: bool = False) -> Callable[[Builder, Sequence[str], str], str]:
    def emit(g: Builder, x: Sequence[str], base: str) -> str:
        pair = [g.number(number), x[0]] if first else [x[0], g.number(number)]
        return g.op(name, pair, base)

    return emit


def _log(shift: float, scale: float) -> Callable[[Builder, Sequence[str], str], str]:
    def emit(g: Builder, x: Sequence[str], base: str) -> str:
        inner = g.op("Add", [x[0], g.number(shift)], f"{base}/shifted") if shift else x[0]
        y = g.op("Log", [inner], base)
        return g.op("Mul", [y, g.number(scale)], f"{base}/scaled") if scale != 1 else y

    return emit


def _expm1(g: Builder, x: Sequence[str], base: str) -> str:
    # Elu is exp(x) - 1 below zero, without the cancellation near it.
    below = g.op("Elu", [g.op("Min", [x[0], g.number(0.0)], f"{base}/below")], f"{base}/small")
    above = g.op("Exp", [g.op("Max", [x[0], g.number(0.0)], f"{base}/above")], f"{base}/large")
    return g.op("Add", [below, g.op("Sub", [above, g.number(1.0)], f"{base}/less")], base)


def _floor_mod(g: Builder, x: Sequence[str], base: str) -> str:
    whole = g.op("Floor", [g.op("Div", x, f"{base}/ratio")], f"{base}/whole")
    return g.op("Sub", [x[0], g.op("Mul", [whole, x[1]], f"{base}/product")], base)


def _not_equal(g: Builder, x: Sequence[str], base: str) -> str:
    return g.op("Not", [g.op("Equal", x, f"{base}/equal")], base)


_PAIR = ("x1", "x2")
FUNCTIONS: dict[str, Function] = {
    "Absolute": Function(_op("Abs"), np.abs, "same"),
    "Abs": Function(_op("Abs"), np.abs, "same"),
    "Negative": Function(_op("Neg"), np.negative, "same"),
    "Sign": Function(_op("Sign"), np.sign, "same"),
    "Square": Function(lambda g, x, base: g.op("Mul", [x[0], x[0]], base), np.square, "same"),
    "Exp": Function(_op("Exp"), np.exp),
    "Exp2": Function(_with("Pow", 2.0, first=True), np.exp2),
    "Expm1": Function(_expm1, np.expm1),
    "Log": Function(_op("Log"), np.log),
    "Log1p": Function(_log(1.0, 1.0), np.log1p),
    "Log2": Function(_log(0.0, float(1 / np.log(2))), np.log2),
    "Log10": Function(_log(0.0, float(1 / np.log(10))), np.log10),
    "Sqrt": Function(_op("Sqrt"), np.sqrt),
    "Rsqrt": Function(_after("Sqrt", "Reciprocal"), lambda x: 1 / np.sqrt(x)),
    "Reciprocal": Function(_op("Reciprocal"), lambda x: 1 / x),
    "Sin": Function(_op("Sin"), np.sin),
    "Cos": Function(_op("Cos"), np.cos),
    "Tan": Function(_op("Tan"), np.tan),
    "Arcsin": Function(_op("Asin"), np.arcsin),
    "Arccos": Function(_op("Acos"), np.arccos),
    "Arctan": Function(_op("Atan"), np.arctan),
    "Sinh": Function(_op("Sinh"), np.sinh),
    "Cosh": Function(_op("Cosh"), np.cosh),
    "Tanh": Function(_op("Tanh"), np.tanh),
    "Floor": Function(_op("Floor"), np.floor),
    "Ceil": Function(_op("Ceil"), np.ceil),
    "Round": Function(_op("Round"), np.round),
    "ZerosLike": Function(lambda g, x, base: g.op("Sub", [x[0], x[0]], base), np.zeros_like, "same"),
    "Isnan": Function(_op("IsNaN"), np.isnan, "float to bool"),
    "LogicalNot": Function(_op("Not"), np.logical_not, "logic"),
    "Add": Function(_op("Add"), np.add, "same", _PAIR),
    "Subtract": Function(_op("Sub"), np.subtract, "same", _PAIR),
    "Multiply": Function(_op("Mul"), np.multiply, "same", _PAIR),
    "Divide": Function(_op("Div"), np.true_divide, "float", _PAIR),
    "TrueDivide": Function(_op("Div"), np.true_divide, "float", _PAIR),
    "FloorDivide": Function(_after("Div", "Floor"), lambda a, b: np.floor(a / b), "float", _PAIR),
    "Mod": Function(_floor_mod, lambda a, b: a - np.floor(a / b) * b, "float", _PAIR),
    "Power": Function(_op("Pow"), np.power, "float", _PAIR),
    "Maximum": Function(_op("Max"), np.maximum, "same", _PAIR),
    "Minimum": Function(_op("Min"), np.minimum, "same", _PAIR),
    "Greater": Function(_op("Greater"), np.greater, "bool", _PAIR),
    "GreaterEqual": Function(_op("GreaterOrEqual"), np.greater_equal, "bool", _PAIR),
    "Less": Function(_op("Less"), np.less, "bool", _PAIR),
    "LessEqual": Function(_op("LessOrEqual"), np.less_equal, "bool", _PAIR),
    "Equal": Function(_op("Equal"), np.equal, "bool", _PAIR),
    "NotEqual": Function(_not_equal, np.not_equal, "bool", _PAIR),
    "LogicalAnd": Function(_op("And"), np.logical_and, "logic", _PAIR),
    "LogicalOr": Function(_op("Or"), np.logical_or, "logic", _PAIR),
    "Where": Function(_op("Where"), np.where, "choice", ("condition", "x1", "x2")),
}


class Elementwise(Operator):
    """An operator of FUNCTIONS."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.function = FUNCTIONS[options.kind]
        self.operands = [self.operand(key) for key in self.function.parameters]
        options.finish("name")
        if not any(isinstance(x, Slot) for x in self.operands):
            raise EdgeLstmError(f"{self.what} is called with nothing", expected="a tensor")

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        values = self.unmasked(inputs)
        same_time(self, values)
        if values[0].time is not None:
            values = aligned(self, g, values, place)
        shape = list(broadcast(self, [v.shape for v in values]))
        first = values[0]
        constants = [x for x in self.operands if not isinstance(x, Slot)]
        dtype = self._common([v.dtype for v in values], constants)
        wanted = [dtype] * len(self.operands)
        if self.function.result == "choice":
            own = self.operands[1:]
            dtype = self._common(
                [values[x.number].dtype for x in own if isinstance(x, Slot)],
                [x for x in own if not isinstance(x, Slot)],
            )
            wanted = ["bool", dtype, dtype]
        names = []
        for operand, kind in zip(self.operands, wanted, strict=True):
            if isinstance(operand, Slot):
                names.append(g.layout(g.cast(values[operand.number], kind), first.perm))
                continue
            array = self._frame_of(operand, first)
            shape = list(broadcast(self, [tuple(shape), array.shape[1:]]))
            names.append(g.constant(array.astype(kind).transpose(first.perm), f"{place}/constant"))
        made = self.function.emit(g, names, place)
        ready, sequence = max(v.ready for v in values), all(v.sequence for v in values)
        if self.function.result in ("bool", "float to bool", "logic"):
            dtype = "bool"
        return [replace(first, name=made, shape=tuple(shape), ready=ready, sequence=sequence, dtype=dtype)]

    def _common(self, dtypes: Sequence[str], constants: Sequence[Array]) -> str:
        """The type that the operands are brought to."""
        kinds = {*dtypes, *({"f": "float32", "b": "bool"}.get(c.dtype.kind, "int") for c in constants)}
        if self.function.result == "logic":
            if kinds != {"bool"}:
                raise EdgeLstmError(f"{self.what}: operands", found=", ".join(sorted(kinds)), expected="bool")
            return "bool"
        if self.function.result.startswith("float") or "float32" in kinds:
            return "float32"
        if kinds == {"bool"}:
            return "int32" if self.function.result == "same" else "bool"
        if "uint8" in kinds:
            if self.function.result == "same":
                raise EdgeLstmError(
                    f"{self.what} computes in uint8",
                    expected="float32",
                    hint="Rescaling or keras.ops.cast before it",
                )
            return "int32"
        return "int64" if "int64" in kinds else "int32"

    def _frame_of(self, constant: Array, like: Value) -> Array:
        """A constant with as many axes as ``like``'s tensor in Keras's order: [1, ...]."""
        if constant.ndim > like.rank:
            raise EdgeLstmError(
                f"{self.what}: a constant",
                found=f"shape {list(constant.shape)}",
                expected=f"at most {count_of(like.rank, 'axis', 'axes')}",
            )
        array = constant.reshape(*[1] * (like.rank - constant.ndim), *constant.shape)
        if array.shape[0] != 1:
            raise mixes_rows(self.what, f"a constant of shape {list(constant.shape)}")
        if like.time is not None:
            if array.shape[1] != 1:
                raise NeedsWindow(f"{self.what} has a constant for every frame")
            array = array[:, 0]
        return array

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        arrays = waited(inputs, place, memory)
        operands = [arrays[x.number] if isinstance(x, Slot) else x for x in self.operands]
        if self.function.result == "choice":
            operands[0] = operands[0].astype(bool)
        elif self.function.result.startswith("float"):
            operands = [x.astype(np.float64) for x in operands]
        with np.errstate(all="ignore"):
            y = self.function.compute(*operands)
        begun = all(x.begun for x in inputs)
        sequence = all(x.sequence for x in inputs)
        return [replace(inputs[0], data=y, mask=None, sequence=sequence, begun=begun)]


class Clip(OneOperator):
    """min(max(x, x_min), x_max)."""

    parameters = ("x", "x_min", "x_max")

    def read(self, options: Options) -> None:
        self.low, self.high = options.number("x_min", 0.0), options.number("x_max", 0.0)

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        value = g.cast(value, "float32")
        clipped = g.op("Clip", [value.name, g.number(self.low), g.number(self.high)], place)
        return [replace(value, name=clipped)]

    def apply(self, x: Array) -> list[Array]:
        return [np.clip(x, self.low, self.high)]


class Same(OneOperator):
    """The tensor as it is."""

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        return [value]

    def apply(self, x: Array) -> list[Array]:
        return [x]


class Cast(OneOperator):
    """Another type."""

    parameters = ("x", "to")

    def read(self, options: Options) -> None:
        allowed = ("float32", "float16", "bfloat16", "int32", "int64", "bool")
        self.to = options.choice("to", allowed)
        if self.to in ("float16", "bfloat16"):
            self.to = "float32"  # as all of the model

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        return [g.cast(value, self.to)]

    def apply(self, x: Array) -> list[Array]:
        kinds: dict[str, Any] = {"float32": np.float64, "bool": bool}
        return [x.astype(kinds.get(self.to, np.int64))]


_ACTIVATIONS: dict[str, str] = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Silu": "silu",
    "Swish": "silu",
    "LogSigmoid": "log_sigmoid",
    "LeakyRelu": "leaky_relu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "HardTanh": "hard_tanh",
    "TanhShrink": "tanh_shrink",
    "Elu": "elu",
    "Selu": "selu",
    "Gelu": "gelu",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}


class ActivationOperator(OneOperator):
    """An activation function."""

    def read(self, options: Options) -> None:
        name = _ACTIVATIONS[options.kind]
        found = Activation(name)
        if name in ("softmax", "log_softmax"):
            axis = options.get("axis")
            found = Activation(name, axis=-1 if axis is None else options.axes("axis")[0])
        elif name == "relu6":
            found = Activation("relu", high=6.0)
        elif name == "leaky_relu":
            key = "alpha" if options.source.keras < 3 else "negative_slope"
            found = Activation("relu", options.number(key, 0.2))
        elif name == "elu":
            found = Activation(name, options.number("alpha", 1.0))
        elif name == "hard_sigmoid":
            found = Activation(name, alpha=1 / 6, beta=0.5)
        elif name == "gelu":
            found = Activation(name, float(options.flag("approximate", options.source.keras >= 3)))
        self.activation = found

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        return [self.activation.apply(g, g.cast(value, "float32"), place)]

    def apply(self, x: Array) -> list[Array]:
        return [self.activation.compute(x.astype(np.float64))]


ACTIVATIONS = tuple(_ACTIVATIONS)
