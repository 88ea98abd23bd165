"""Keras's activation functions, each as ONNX operators and as NumPy.

Source: the documentation of keras.activations; ``hard_sigmoid`` is clip(0.2 x + 0.5, 0, 1) in files of Keras 2 and
relu6(x + 3) / 6 in those of Keras 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.builder import Array, Builder, Value
from edgelstm.frontends.keras.options import Options

Emit = Callable[[Builder, str, str], str]
Compute = Callable[[Array], Array]

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


@dataclass(frozen=True)
class Activation:
    """One activation with its parameters."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0
    high: float | None = None
    axis: int = -1

    def apply(self, g: Builder, value: Value, base: str) -> Value:
        """Emit it on a whole value; softmax needs to know the axes."""
        from dataclasses import replace

        if self.name in ("softmax", "log_softmax"):
            axis = value.physical(value.axis(self.axis, f"{base}: softmax"))
            op = "Softmax" if self.name == "softmax" else "LogSoftmax"
            return replace(value, name=g.op(op, [value.name], base, axis=axis))
        return replace(value, name=self.emit(g, value.name, base))

    def emit(self, g: Builder, x: str, base: str) -> str:
        """Emit it element by element."""
        if self.name == "linear":
            return x
        simple = _OPERATORS.get(self.name)
        if simple is not None:
            return g.op(simple, [x], base)
        return _EMIT[self.name](self, g, x, base)

    def compute(self, x: Array) -> Array:
        """By NumPy."""
        if self.name in ("softmax", "log_softmax"):
            shifted = x - x.max(self.axis, keepdims=True)
            total = np.exp(shifted).sum(self.axis, keepdims=True)
            y: Array = shifted - np.log(total)
            return np.exp(y) if self.name == "softmax" else y
        return _COMPUTE[self.name](self, x)


def _binary(op: str) -> Callable[[Builder, str, float | str, str], str]:
    def emit(g: Builder, x: str, y: float | str, base: str) -> str:
        return g.op(op, [x, y if isinstance(y, str) else g.number(y)], base)

    return emit


_add, _mul, _min, _max = _binary("Add"), _binary("Mul"), _binary("Min"), _binary("Max")


def _clip(g: Builder, x: str, low: float, high: float, base: str) -> str:
    return g.op("Clip", [x, g.number(low), g.number(high)], base)


def _emit_relu(a: Activation, g: Builder, x: str, base: str) -> str:
    """x above ``beta`` (at most ``high``), alpha (x - beta) below."""
    if not a.beta and a.high is None:
        return g.op("LeakyRelu", [x], base, alpha=a.alpha) if a.alpha else g.op("Relu", [x], base)
    over = g.op("GreaterOrEqual" if a.beta else "Greater", [x, g.number(a.beta)], f"{base}/over")
    below = _mul(g, _add(g, x, -a.beta, f"{base}/under"), a.alpha, f"{base}/leak")
    kept = x if a.high is None else _min(g, x, a.high, f"{base}/capped")
    return g.op("Where", [over, kept, below], base)


def _emit_gelu(a: Activation, g: Builder, x: str, base: str) -> str:
    if a.alpha:  # the tanh form
        cube = _mul(g, g.op("Mul", [x, x], f"{base}/square"), x, f"{base}/cube")
        inner = _add(g, x, _mul(g, cube, 0.044715, f"{base}/small"), f"{base}/sum")
        bent = g.op("Tanh", [_mul(g, inner, math.sqrt(2 / math.pi), f"{base}/scaled")], f"{base}/bent")
    else:
        bent = g.op("Erf", [_mul(g, x, math.sqrt(0.5), f"{base}/scaled")], f"{base}/bent")
    return _mul(
        g, _mul(g, x, 0.5, f"{base}/half"), g.op("Add", [bent, g.number(1.0)], f"{base}/lifted"), base
    )


def _np_relu(a: Activation, x: Array) -> Array:
    kept = x if a.high is None else np.minimum(x, a.high)
    over = x >= a.beta if a.beta else x > 0
    y: Array = np.where(over, kept, a.alpha * (x - a.beta))
    return y


def _np_sigmoid(x: Array) -> Array:
    y: Array = np.multiply(x, 0.5)
    np.tanh(y, out=y)  # in place: the arrays of maps are large
    y *= 0.5
    y += 0.5
    return y


def _np_softplus(x: Array) -> Array:
    y: Array = np.logaddexp(x, 0.0)
    return y


def _np_gelu(a: Activation, x: Array) -> Array:
    if a.alpha:
        y: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return y
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    z: Array = 0.5 * x * (1 + (erf(x * math.sqrt(0.5)) if x.size else x))
    return z


def _np_elu(x: Array, alpha: float) -> Array:
    y: Array = np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
    return y


_OPERATORS = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "exponential": "Exp",
    "mish": "Mish",
}
_EMIT: dict[str, Callable[[Activation, Builder, str, str], str]] = {
    "relu": _emit_relu,
    "gelu": _emit_gelu,
    "hard_sigmoid": lambda a, g, x, b: g.op("HardSigmoid", [x], b, alpha=a.alpha, beta=a.beta),
    "hard_silu": lambda a, g, x, b: _mul(
        g, x, g.op("HardSigmoid", [x], f"{b}/gate", alpha=1 / 6, beta=0.5), b
    ),
    "silu": lambda a, g, x, b: _mul(g, x, g.op("Sigmoid", [x], f"{b}/gate"), b),
    "elu": lambda a, g, x, b: g.op("Elu", [x], b, alpha=a.alpha),
    "selu": lambda a, g, x, b: g.op("Selu", [x], b, alpha=_SELU_ALPHA, gamma=_SELU_SCALE),
    "hard_tanh": lambda a, g, x, b: _clip(g, x, -1.0, 1.0, b),
    "tanh_shrink": lambda a, g, x, b: g.op("Sub", [x, g.op("Tanh", [x], f"{b}/tanh")], b),
    "log_sigmoid": lambda a, g, x, b: g.op(
        "Neg", [g.op("Softplus", [g.op("Neg", [x], f"{b}/minus")], f"{b}/soft")], b
    ),
}
_COMPUTE: dict[str, Callable[[Activation, Array], Array]] = {
    "linear": lambda a, x: x,
    "tanh": lambda a, x: np.tanh(x),
    "sigmoid": lambda a, x: _np_sigmoid(x),
    "softplus": lambda a, x: _np_softplus(x),
    "softsign": lambda a, x: x / (1 + np.abs(x)),
    "exponential": lambda a, x: np.exp(x),
    "mish": lambda a, x: x * np.tanh(_np_softplus(x)),
    "relu": _np_relu,
    "gelu": _np_gelu,
    "hard_sigmoid": lambda a, x: np.clip(a.alpha * x + a.beta, 0, 1),
    "hard_silu": lambda a, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "silu": lambda a, x: x * _np_sigmoid(x),
    "elu": lambda a, x: _np_elu(x, a.alpha),
    "selu": lambda a, x: _SELU_SCALE * _np_elu(x, _SELU_ALPHA),
    "hard_tanh": lambda a, x: np.clip(x, -1, 1),
    "tanh_shrink": lambda a, x: x - np.tanh(x),
    "log_sigmoid": lambda a, x: -_np_softplus(-x),
}
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu", "relu6": "relu", "leaky_relu": "relu"}
NAMES = sorted({*_COMPUTE, *_ALIASES, "softmax", "log_softmax"})


def read_activation(options: Options, key: str, default: Any = "linear") -> Activation:
    """The activation option ``key`` names: a name, or the configuration of an activation layer."""
    value = options.get(key, default)
    if value is None:
        return Activation("linear")
    if isinstance(value, dict):
        config = value.get("config")
        if "lambda" in str(value.get("class_name")).lower():
            raise EdgeLstmError(
                f"{options.what}: option {key!r} is code of its own (a lambda), which is never run",
                expected=f"one of {', '.join(NAMES)}",
            )
        if isinstance(config, dict):
            return layer_activation(
                Options(options.source, f"{options.path}/{key}", str(value.get("class_name")), config)
            )
        registered = value.get("registered_name")
        value = config if registered in (None, config) else registered
    if not isinstance(value, str) or value not in NAMES:
        raise options.error(key, f"one of {', '.join(NAMES)}")
    name = _ALIASES.get(value, value)
    if value == "relu6":
        return Activation(name, high=6.0)
    if value == "leaky_relu":
        return Activation(name, alpha=0.2)
    if name == "hard_sigmoid":
        return Activation(name, alpha=0.2 if options.source.keras < 3 else 1 / 6, beta=0.5)
    return Activation(name, alpha=1.0 if name == "elu" else 0.0)


def layer_activation(options: Options) -> Activation:
    """An activation that is a layer: ReLU, LeakyReLU, ELU, Softmax or Activation."""
    kind = options.kind
    if kind == "Activation":
        found = read_activation(options, "activation")
    elif kind == "ReLU":
        high = options.get("max_value")
        found = Activation(
            "relu",
            options.number("negative_slope", 0.0),
            options.number("threshold", 0.0),
            None if high is None else options.number("max_value", 0.0),
        )
    elif kind == "LeakyReLU":
        # Keras 2 calls it alpha.
        key = "negative_slope" if options.get("negative_slope") is not None else "alpha"
        found = Activation("relu", options.number(key, 0.3))
    elif kind == "ELU":
        found = Activation("elu", options.number("alpha", 1.0))
    elif kind == "Softmax":
        axes = options.axes("axis", -1)
        if len(axes) != 1:
            raise options.error("axis", "one axis")
        found = Activation("softmax", axis=axes[0])
    else:
        raise EdgeLstmError(f"{options.what} as an activation", expected="ReLU, LeakyReLU, ELU or Softmax")
    options.finish()
    return found
