"""What a step graph takes and gives: frames in, outputs out, and the states that are fed back.

Standard library and NumPy only, so a device that has neither onnx nor torch can read it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.dtypes import CODED, DTYPES, from_float32, np_dtype, to_float32
from edgelstm.errors import EdgeLstmError, count_of

SCHEMA = 1
#: A tensor with more elements than this is a mistake or an attack (2**31 - 1, the limit of most runtimes).
MAX_ELEMENTS = 2**31 - 1

#: In a snapshot's file, beside the states.
RESERVED = "edgelstm.snapshot"

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """A frame or an output: name in the graph, dtype (NumPy's name), shape.

    Axis 0 is the stream axis: a name such as ``"N"`` (any number of streams in one call) or a fixed size.
    All other dimensions are fixed.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        _check_name("a tensor's name", self.name)
        _check_dtype(self.name, self.dtype)
        _check_shape(self.name, self.shape)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape without the stream axis."""
        return tuple(int(d) for d in self.shape[1:])


@dataclass(frozen=True)
class Quantization:
    """What a stored number is worth: ``(stored - zero_point) * scale``.

    ``scale`` has one number, or one for each channel (axis 1 of the state's shape, the first after the streams).
    """

    scale: tuple[float, ...]
    zero_point: int = 0

    def __post_init__(self) -> None:
        if not self.scale or not all(0 < s < math.inf for s in self.scale):
            raise EdgeLstmError(
                "scale of a quantised state", found=self.scale, expected="finite numbers above 0"
            )


@dataclass(frozen=True)
class StateSpec:
    """A tensor fed back: the graph's ``input`` takes what its ``output`` gave one step earlier.

    ``initial`` is None for stored zeros, or the little-endian C-order bytes of one stream's initial value
    (shape[1:]). ``quantization`` says what the stored numbers are worth where they are not the values themselves.
    """

    name: str
    input: str
    output: str
    dtype: str
    shape: tuple[Dim, ...]
    initial: bytes | None = field(default=None, repr=False)
    quantization: Quantization | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for label, value in (
            ("name", self.name),
            ("input", self.input),
            ("output", self.output),
        ):
            _check_name(f"a state's {label}", value)
        if self.name == RESERVED:
            raise EdgeLstmError(
                f"a state called {RESERVED!r}",
                expected="another name: snapshots say under it of which model they are",
            )
        _check_dtype(self.name, self.dtype)
        _check_shape(self.name, self.shape)
        if self.initial is not None:
            size = math.prod(self.frame_shape) * np_dtype(self.dtype).itemsize
            if len(self.initial) != size:
                raise EdgeLstmError(
                    f"initial value of state {self.name!r}",
                    found=f"{count_of(len(self.initial), 'byte')}",
                    expected=f"{count_of(size, 'byte')} for {self.dtype}{list(self.frame_shape)}",
                )
        q = self.quantization
        if q is not None and len(q.scale) not in {1, *self.frame_shape[:1]}:
            raise EdgeLstmError(
                f"scales of state {self.name!r}",
                found=len(q.scale),
                expected=f"1, or one for each channel of {list(self.frame_shape)}",
            )

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one stream's state."""
        return tuple(int(d) for d in self.shape[1:])

    def initial_value(self) -> npt.NDArray[Any]:
        """One stream's initial state, shape ``frame_shape``; a fresh, writable array."""
        if self.initial is None:
            return np.zeros(self.frame_shape, np_dtype(self.dtype))
        flat: npt.NDArray[Any] = np.frombuffer(self.initial, np_dtype(self.dtype))
        value: npt.NDArray[Any] = flat.reshape(self.frame_shape).copy()
        return value

    @property
    def is_coded(self) -> bool:
        """Whether what is stored are not plain numbers of a NumPy dtype."""
        return self.quantization is not None or self.dtype in CODED

    def values(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What stored states, [..., *frame_shape], are worth: float32, or as they are where they hold plain numbers."""
        q = self.quantization
        if q is None:
            return to_float32(stored, self.dtype) if self.is_coded else stored
        worth: npt.NDArray[Any] = (to_float32(stored, self.dtype) - q.zero_point) * self._scale(q)
        return worth

    def stored(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The inverse of :meth:`values`, rounded to the nearest stored number, saturating."""
        q = self.quantization
        if q is not None:
            values = values / self._scale(q) + q.zero_point
        return from_float32(values, self.dtype)

    def _scale(self, q: Quantization) -> npt.NDArray[Any]:
        """Shaped to broadcast over ``frame_shape``."""
        return np.asarray(q.scale, np.float32).reshape(-1, *[1] * (len(self.frame_shape) - 1))


@dataclass(frozen=True, repr=False)
class Signature:
    """Inputs (frames), outputs and states of a step graph or of an unrolled window.

    ``window`` is None for a step; for an unrolled window it is T, and axis 1 of every input and output is time.
    ``preprocessing`` maps an input's name to the list of operations that turn a raw frame into it; see
    ``edgelstm.pipeline.preprocess``; ``postprocessing`` does so for outputs. An output may bear the name of a state's output: then the two are one tensor.
    ``ranges`` maps an input's name to the smallest and the largest value that was seen of it when the model was exported
    or calibrated, where that is known.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    window: int | None = None
    preprocessing: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    postprocessing: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        def some(kind: str, specs: Sequence[TensorSpec | StateSpec]) -> str:
            texts = [f"{s.name} {s.dtype}[{', '.join(map(str, s.shape))}]" for s in specs[:3]]
            return f"{kind} {', '.join(texts)}" + (f" and {len(specs) - 3} more" if len(specs) > 3 else "")

        parts = [some("inputs", self.inputs), some("outputs", self.outputs), some("states", self.states)]
        return f"Signature({'; '.join(parts)}{'' if self.window is None else f'; window of {self.window}'})"

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EdgeLstmError("a Signature without inputs", expected="at least one")
        if not self.outputs and not self.states:
            raise EdgeLstmError("a Signature with neither outputs nor states", expected="at least one")
        _check_unique(
            "graph input",
            [t.name for t in self.inputs] + [s.input for s in self.states],
        )
        _check_unique("output", [t.name for t in self.outputs])
        _check_unique("state output", [s.output for s in self.states])
        _check_unique("state", [s.name for s in self.states])
        # Runtimes do not agree on whether such an output is ever written: ONNX Runtime leaves a bound buffer as it was.
        made = {t.name for t in self.outputs} | {s.output for s in self.states}
        passed = made & ({t.name for t in self.inputs} | {s.input for s in self.states})
        if passed:
            raise EdgeLstmError(
                f"graph inputs that are outputs as well: {', '.join(sorted(passed))}",
                expected="outputs that a node makes",
                hint="Put an Identity between them",
            )
        tensors: list[TensorSpec | StateSpec] = [*self.inputs, *self.outputs, *self.states]
        axes = {t.shape[0] for t in tensors}
        if len(axes) != 1:
            raise EdgeLstmError(
                "tensors of one Signature differ in their stream axis (axis 0)",
                found=", ".join(f"{t.name}{list(t.shape)}" for t in tensors),
                expected="one size or one name for all",
            )
        odd = [n for n, (low, high) in self.ranges.items() if not -math.inf < low <= high < math.inf]
        if odd or set(self.ranges) - {t.name for t in self.inputs}:
            raise EdgeLstmError(
                "ranges of inputs in the Signature",
                found=dict(self.ranges),
                expected="for inputs it has, finite, low first",
            )
        for kind, given, specs in (
            ("preprocessing for an input", self.preprocessing, self.inputs),
            ("postprocessing for an output", self.postprocessing, self.outputs),
        ):
            unknown = set(given) - {t.name for t in specs}
            if unknown:
                raise EdgeLstmError(f"{kind} the Signature does not have", found=sorted(unknown))
        if self.window is not None:
            if self.window < 1:
                raise EdgeLstmError("window", found=self.window, expected="at least 1 frame")
            for t in (*self.inputs, *self.outputs):
                if len(t.shape) < 2 or t.shape[1] != self.window:
                    raise EdgeLstmError(
                        f"{t.name} of a window graph",
                        found=list(t.shape),
                        expected=f"time, {self.window}, on axis 1",
                    )

    @property
    def stream_axis(self) -> Dim:
        """Size of axis 0: a name when any number of streams fits in one call."""
        return self.inputs[0].shape[0]

    @property
    def rows(self) -> int:
        """Rows that a call takes at least: the size of axis 0, or 1 where any number fits."""
        axis = self.stream_axis
        return axis if isinstance(axis, int) else 1

    def input(self, name: str) -> TensorSpec:
        """The input called ``name``."""
        return _by_name("input", self.inputs, name)

    def output(self, name: str) -> TensorSpec:
        """The output called ``name``."""
        return _by_name("output", self.outputs, name)

    def state(self, name: str) -> StateSpec:
        """The state called ``name``."""
        for spec in self.states:
            if spec.name == name:
                return spec
        raise EdgeLstmError(f"no state {name!r}", expected=f"one of {[s.name for s in self.states]}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; ``Signature.from_json`` is its inverse."""
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "inputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in self.inputs],
            "outputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in self.outputs],
            "states": [
                {
                    "name": s.name,
                    "input": s.input,
                    "output": s.output,
                    "dtype": s.dtype,
                    "shape": list(s.shape),
                    "initial": _initial_json(s),
                    **_quantization_json(s.quantization),
                }
                for s in self.states
            ],
        }
        if self.window is not None:
            data["window"] = self.window
        if self.preprocessing:
            data["preprocessing"] = {
                name: [dict(op) for op in ops] for name, ops in self.preprocessing.items()
            }
        if self.postprocessing:
            data["postprocessing"] = {
                name: [dict(op) for op in ops] for name, ops in self.postprocessing.items()
            }
        if self.ranges:
            data["ranges"] = {name: list(ends) for name, ends in self.ranges.items()}
        return data

    def dumps(self) -> str:
        """Canonical JSON text: equal Signatures give equal text."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, data: Any, where: str = "Signature") -> Signature:
        """Read what ``to_json`` wrote; raise EdgeLstmError on anything else.

        ``where`` names the file in messages.
        """
        if not isinstance(data, dict):
            raise EdgeLstmError(
                f"{where}: not a Signature",
                found=type(data).__name__,
                expected="a JSON object",
            )
        if data.get("schema") != SCHEMA:
            raise EdgeLstmError(
                f"{where}: Signature schema",
                found=data.get("schema"),
                expected=SCHEMA,
                hint="A newer edgelstm may have written it: upgrade, or export the model again",
            )
        try:
            return cls(
                inputs=tuple(_tensor(item) for item in data["inputs"]),
                outputs=tuple(_tensor(item) for item in data["outputs"]),
                states=tuple(_state(item) for item in data["states"]),
                window=_optional_int(data.get("window")),
                preprocessing=_operations(data.get("preprocessing", {})),
                postprocessing=_operations(data.get("postprocessing", {})),
                ranges={
                    str(name): (float(low), float(high))
                    for name, (low, high) in dict(data.get("ranges", {})).items()
                },
            )
        except EdgeLstmError as error:
            raise EdgeLstmError(
                f"{where}: {error.what}",
                found=error.found,
                expected=error.expected,
                hint=error.hint,
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EdgeLstmError(
                f"{where}: malformed Signature",
                found=f"{type(error).__name__} {error}",
                expected="keys inputs, outputs, states as edgelstm writes them",
            ) from error

    @classmethod
    def loads(cls, text: str, where: str = "Signature") -> Signature:
        """Parse JSON text."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EdgeLstmError(f"{where}: Signature is not JSON", found=str(error)) from error
        return cls.from_json(data, where)


def _check_name(what: str, name: object) -> None:
    # A zero byte ends a name in a snapshot's file, and for programs in C.
    if not isinstance(name, str) or not name or "\0" in name:
        raise EdgeLstmError(
            what, found=repr(name), expected="a name: text that is not empty, without zero bytes"
        )


def _check_dtype(name: str, dtype: object) -> None:
    if dtype not in DTYPES:
        raise EdgeLstmError(f"dtype of {name!r}", found=dtype, expected=f"one of {', '.join(DTYPES)}")


def _check_shape(name: str, shape: tuple[Dim, ...]) -> None:
    good = len(shape) >= 1 and all(
        isinstance(d, int) and not isinstance(d, bool) and d >= 1 for d in shape[1:]
    )
    if good and isinstance(shape[0], str):
        good = bool(shape[0])
    elif good:
        good = isinstance(shape[0], int) and shape[0] >= 1
    if not good:
        raise EdgeLstmError(
            f"shape of {name!r}",
            found=list(shape),
            expected="axis 0 a name or a size (the streams), all others fixed sizes of at least 1",
        )
    if math.prod(int(d) for d in shape[1:]) > MAX_ELEMENTS:
        raise EdgeLstmError(
            f"shape of {name!r} is too large",
            found=list(shape),
            expected=f"at most {MAX_ELEMENTS} elements a stream",
        )


def _check_unique(kind: str, names: list[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise EdgeLstmError(f"{kind} named twice", found=", ".join(twice), expected="distinct names")


def _by_name(kind: str, specs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise EdgeLstmError(f"no {kind} {name!r}", expected=f"one of {[s.name for s in specs]}")


def _optional_int(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise EdgeLstmError("window", found=value, expected="a whole number")
    return value


def _operations(data: Any) -> dict[str, tuple[dict[str, Any], ...]]:
    return {str(name): tuple(dict(op) for op in ops) for name, ops in dict(data).items()}


def _dims(items: Any) -> tuple[Dim, ...]:
    if not isinstance(items, list):
        raise EdgeLstmError("shape", found=items, expected="a list")
    return tuple(items)


def _tensor(item: Any) -> TensorSpec:
    return TensorSpec(item["name"], item["dtype"], _dims(item["shape"]))


def _state(item: Any) -> StateSpec:
    initial = item.get("initial", "zeros")
    return StateSpec(
        name=item["name"],
        input=item["input"],
        output=item["output"],
        dtype=item["dtype"],
        shape=_dims(item["shape"]),
        initial=_initial(initial, item),
        quantization=_quantization(item.get("quantization")),
    )


def _initial(initial: Any, item: Any) -> bytes | None:
    if initial == "zeros":
        return None
    if "repeated" not in initial:
        return base64.b64decode(initial["base64"], validate=True)
    count = math.prod(int(d) for d in item["shape"][1:])
    if not 0 <= count <= MAX_ELEMENTS:
        raise EdgeLstmError(f"shape of {item['name']!r} is too large", found=item["shape"])
    return base64.b64decode(initial["repeated"], validate=True) * count


def _initial_json(s: StateSpec) -> Any:
    if s.initial is None:
        return "zeros"
    one = s.initial[: np_dtype(s.dtype).itemsize]
    if one * math.prod(s.frame_shape) == s.initial:
        return {"repeated": base64.b64encode(one).decode("ascii")}
    return {"base64": base64.b64encode(s.initial).decode("ascii")}


def _quantization(item: Any) -> Quantization | None:
    if item is None:
        return None
    return Quantization(tuple(float(s) for s in item["scale"]), int(item.get("zero_point", 0)))


def _quantization_json(q: Quantization | None) -> dict[str, Any]:
    return {} if q is None else {"quantization": {"scale": list(q.scale), "zero_point": q.zero_point}}
