"""What a layer's configuration says, read with care: the file may hold anything.

Every option a layer does not know is refused, unless it is off (None, False, zero): it may change what the layer
computes. What only matters in training is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelstm.errors import EdgeLstmError

#: No size in a configuration may be larger; weights of such a layer would not fit a file.
MAX_SIZE = 2**24
#: Of any layer, and of no consequence at inference.
_TRAINING = {
    "name",
    "trainable",
    "dtype",
    "seed",
    "dropout",
    "recurrent_dropout",
    "activity_regularizer",
    "unit_forget_bias",
    "implementation",
    "unroll",
    "use_cudnn",
    "batch_input_shape",
    "batch_shape",
    "input_shape",
    "autocast",
    "noise_shape",
}
_TRAINING_ENDINGS = ("_initializer", "_regularizer", "_constraint")
#: Computed in float32 here; the weights of mixed policies are float32 in any case.
_DTYPES = ("float32", "mixed_float16", "mixed_bfloat16")

#: Layers whose type is that of the whole numbers they take or give.
_COUNTING = (
    "InputLayer",
    "Embedding",
    "CategoryEncoding",
    "Discretization",
    "IntegerLookup",
    "ConvertToTensor",
)


@dataclass(frozen=True)
class Source:
    """The file a model comes from: its path for messages, and the major version of the Keras that wrote it."""

    where: str
    keras: int


class Options:
    """The configuration of one layer, by key.

    Parameters
    ----------
    path: the layer's place in the model, such as ``encoder/lstm_1``.
    kind: the layer's class name.
    """

    def __init__(self, source: Source, path: str, kind: str, config: Mapping[str, Any]) -> None:
        self.source, self.path, self.kind = source, path, kind
        self._config = dict(config)
        self._known: set[str] = set()
        self._check_dtype()

    @property
    def what(self) -> str:
        """The layer, for messages."""
        if not self.path:
            return f"{self.source.where}: the {self.kind} model"
        return f"{self.source.where}: layer {self.path!r} ({self.kind})"

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value; ``default`` where the file does not say."""
        self._known.add(key)
        return self._config.get(key, default)

    def error(
        self, key: str, expected: object, found: object = ..., hint: str | None = None
    ) -> EdgeLstmError:
        """What is wrong with option ``key``."""
        value = self._config.get(key) if found is ... else found
        return EdgeLstmError(
            f"{self.what}: option {key!r}", found=_short(value), expected=expected, hint=hint
        )

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least ``least``."""
        value = self.get(key, default)
        if not is_whole(value, least):
            raise self.error(key, f"a whole number from {least} to {MAX_SIZE}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.get(key, default)
        if isinstance(value, dict):  # some versions keep scalars as one-element arrays
            value = value.get("config", {}).get("value") if isinstance(value.get("config"), dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, "a finite number")
        return float(value)

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        """One of ``allowed``, in lower case."""
        value = self.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, str) or value.lower() not in allowed:
            raise self.error(key, f"one of {', '.join(allowed)}")
        return value.lower()

    def sizes(self, key: str, rank: int, default: Any = None, least: int = 1) -> tuple[int, ...]:
        """``rank`` whole numbers; one number stands for all."""
        value = self.get(key, default)
        if value is None:
            value = default
        if is_whole(value, least):
            value = [value] * rank
        if (
            not isinstance(value, list | tuple)
            or len(value) != rank
            or not all(is_whole(v, least) for v in value)
        ):
            raise self.error(key, f"{rank} whole numbers of at least {least}")
        return tuple(int(v) for v in value)

    def pairs(self, key: str, rank: int, default: Any) -> tuple[tuple[int, int], ...]:
        """For each of ``rank`` axes how much before and how much after: n, (n, m), or ((n, n), (m, m))."""
        value = self.get(key, default)
        if is_whole(value, 0):
            value = [[value, value]] * rank
        if isinstance(value, list | tuple) and rank == 1 and len(value) == 2 and is_whole(value[0], 0):
            value = [value]
        if isinstance(value, list | tuple) and len(value) == rank:
            value = [[v, v] if is_whole(v, 0) else v for v in value]
            if all(
                isinstance(v, list | tuple) and len(v) == 2 and all(is_whole(n, 0) for n in v) for v in value
            ):
                return tuple((int(a), int(b)) for a, b in value)
        raise self.error(key, f"{rank} pairs of whole numbers")

    def axes(self, key: str, default: Any = -1) -> tuple[int, ...]:
        """One axis or several."""
        value = self.get(key, default)
        values = value if isinstance(value, list | tuple) else [value]
        if not values or len(values) > 8 or not all(is_whole(abs(v) if _is_int(v) else v, 0) for v in values):
            raise self.error(key, "an axis, or a list of axes")
        return tuple(int(v) for v in values)

    def off(self, key: str, why: str) -> None:
        """Raise unless option ``key`` is off."""
        if not is_off(self.get(key)):
            raise self.error(key, why)

    def finish(self, *passed_over: str) -> None:
        """Raise for options that nobody asked for and that may matter."""
        for key, value in self._config.items():
            known = key in self._known or key in _TRAINING or key in passed_over
            if not known and not key.endswith(_TRAINING_ENDINGS) and not is_off(value):
                raise EdgeLstmError(
                    f"{self.what}: unknown option {key!r}",
                    found=_short(value),
                    expected=", ".join(sorted(self._known)) or "no options",
                )

    def _check_dtype(self) -> None:
        value = self._config.get("dtype")
        if isinstance(value, dict) and isinstance(value.get("config"), dict):
            value = value["config"].get("name")
        self.dtype = "float32" if value is None else value
        if not isinstance(self.dtype, str):
            raise self.error("dtype", f"one of {', '.join(_DTYPES)}")
        if self.dtype not in _DTYPES and self.kind not in _COUNTING:
            raise self.error("dtype", f"one of {', '.join(_DTYPES)}", found=self.dtype)


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether ``value`` is a whole number between ``least`` and the largest size."""
    return _is_int(value) and least <= value <= MAX_SIZE


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_off(value: Any) -> bool:
    """Whether an option with this value changes nothing."""
    return value is None or value is False or (isinstance(value, int | float) and value == 0)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
