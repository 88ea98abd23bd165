"""From a source's raw frame to what the model takes.

A model declares its preprocessing in the Signature, a list of operations for each input; the command line may
replace it. They are applied in order, arithmetic in float32; ``docs/preprocessing.md`` lists them all.

A channel axis of size one that the model wants and the frame lacks is added at the end.

Frames hold the values of their file: 0 to 255 of 8 bits, 0 to 1023 of 10, 0 to 65535 of 16 (``docs/sources.md``). A
``scale`` that a model declares for one depth is refused for frames of another, with the scale that is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgelstm.dtypes import CODED, from_float32, np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import TensorSpec
from edgelstm.pipeline.operations import OPERATIONS, Array, Operation, Transform, raw_layout
from edgelstm.pipeline.optext import format_ops, parse_ops
from edgelstm.pipeline.wording import Say, as_option

Op = Mapping[str, Any]

#: Operations that say in which units a model wants its frames, whatever their shape.
UNITS = ("nodata", "scale", "log1p", "clip", "normalize")
#: Those of them that change every value.
SCALING = ("scale", "log1p", "normalize")


class Preprocess:
    """``preprocess(raw) -> frame`` for one input.

    Parameters
    ----------
    ops: JSON operations, in order.
    spec: the model's input. Frames come out in ``spec.frame_shape`` and ``spec.dtype``, C-contiguous. For an integer
        dtype, values are rounded to the nearest and saturate; bfloat16 and float8e4m3fn come out as their raw bits.
    say: how a hint names what the user may set.

    Raises EdgeLstmError here when an operation is not of the vocabulary, and on the first frame of a shape when an
    operation can't work on it or when what comes out is not the shape that the model expects.
    """

    def __init__(self, ops: Sequence[Op], spec: TensorSpec, say: Say = as_option) -> None:
        self.ops = tuple(ops)
        self.spec = spec
        self._say = say
        self._steps: list[tuple[str, Operation, list[Any]]] = []
        for index, op in enumerate(self.ops):
            name = op.get("op") if isinstance(op, Mapping) else None
            if not isinstance(name, str) or name not in OPERATIONS:
                raise EdgeLstmError(
                    f"{self._where(index)}: unknown operation",
                    found=repr(op if name is None else name),
                    expected=f"one of {', '.join(OPERATIONS)}",
                )
            operation = OPERATIONS[name]
            try:
                self._steps.append((name, operation, operation.values(op)))
            except EdgeLstmError as error:
                raise self._placed(error, index) from error
        self._channels_last = any(name == "channels_first" for name, _, _ in self._steps)
        self._dtype, self._shape = np_dtype(spec.dtype), spec.frame_shape
        #: A frame of that form is what the model takes already.
        self._as_it_is = not self._steps and spec.dtype not in CODED
        self._compiled_for: tuple[int, ...] | None = None
        self._transforms: list[Transform] = []

    def takes(self, raw: Array) -> bool:
        """Whether it is what the model takes, and nothing is to be done to it."""
        return (
            self._as_it_is
            and raw.shape == self._shape
            and raw.dtype == self._dtype
            and raw.flags.c_contiguous
        )

    def __call__(self, raw: Array) -> Array:
        """The frame for the model, an array of its own or, when nothing is to be done, ``raw`` itself."""
        if self.takes(raw):
            return raw
        if raw.shape != self._compiled_for:
            self._transforms = self._compile(raw.shape)
            self._compiled_for = raw.shape
        x = raw
        for transform in self._transforms:
            x = transform(x)
        return np.ascontiguousarray(self._cast(x)).reshape(self._shape)

    def _compile(self, shape: tuple[int, ...]) -> list[Transform]:
        layout = raw_layout(shape, self._channels_last)
        transforms, trail = [], [f"source {list(shape)}"]
        for index, (name, operation, values) in enumerate(self._steps):
            try:
                layout, transform = operation.build(layout, *values)
            except EdgeLstmError as error:
                raise self._placed(error, index) from error
            transforms.append(transform)
            trail.append(f"{name} {list(layout.shape)}")
        want = self.spec.frame_shape
        if layout.shape not in (want, *_without_channel(want)):
            raise EdgeLstmError(
                f"frames for input {self.spec.name!r}",
                found=f"{list(layout.shape)} ({' -> '.join(trail)})",
                expected=f"{list(want)} as the model takes it",
                hint=_hint(shape, layout.shape, want, self.ops, self._say),
            )
        return transforms

    def _cast(self, x: Array) -> Array:
        dtype = self._dtype
        if self.spec.dtype in CODED:
            return from_float32(x, self.spec.dtype)
        if x.dtype == dtype:
            return x
        if dtype.kind in "iu":
            if x.dtype.kind == "f" and not np.isfinite(x).all():
                raise EdgeLstmError(
                    f"frame for input {self.spec.name!r}", found="NaN or infinity", expected=str(dtype)
                )
            return _saturate(x, dtype)
        with np.errstate(over="ignore"):  # infinite in float16: the runner's policy for such frames decides
            return x.astype(dtype)

    def _where(self, index: int) -> str:
        return f"preprocessing of input {self.spec.name!r}, operation {index + 1}"

    def _placed(self, error: EdgeLstmError, index: int) -> EdgeLstmError:
        name = self.ops[index]["op"]
        return EdgeLstmError(
            f"{self._where(index)} ({name}): {error.what}",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        )


def inverse(ops: Sequence[Op]) -> Transform:
    """The way back from model values to physical units, for showing: undoes scale, log1p and normalize.

    Operations that do not change units (crop, resize, nodata, clip, ...) are passed over. Raises EdgeLstmError for a
    normalize with several channels or a scale by zero.
    """
    undo = [step for step in map(_undo, reversed(ops)) if step is not None]

    def apply(values: Array) -> Array:
        y = np.asarray(values, np.float32)
        for step in undo:
            y = step(y).astype(np.float32, copy=False)
        return y

    return apply


def _undo(op: Op) -> Transform | None:
    """What undoes one operation; None when it leaves units alone."""
    if op["op"] == "log1p":
        scale = op.get("scale", 1.0)
        return lambda y: np.expm1(y / scale)
    if op["op"] == "scale":
        factor, offset = op["factor"], op.get("offset", 0.0)
        if not factor:
            raise EdgeLstmError("scale by 0 can't be undone")
        return lambda y: (y - offset) / factor
    if op["op"] == "normalize":
        mean, std = op["mean"], op["std"]
        if (len(mean), len(std)) != (1, 1):
            raise EdgeLstmError(
                "normalize with a value for each channel can't be undone for an output", found=mean
            )
        return lambda y: y * std[0] + mean[0]
    return None


def _without_channel(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What ``shape`` is without a channel axis of one, at either end."""
    return [rest for one, rest in ((shape[:1], shape[1:]), (shape[-1:], shape[:-1])) if one == (1,)]


def _hint(
    raw: tuple[int, ...], have: tuple[int, ...], want: tuple[int, ...], ops: Sequence[Op], say: Say
) -> str:
    """What a user most likely wants, tried here on a raw frame before it is said.

    It takes the place of ``ops``, which made ``have`` of ``raw``: what they do for the units, it does too.
    """
    first = format_ops([op for op in ops if op["op"] == "nodata"])
    then = format_ops([op for op in ops if op["op"] in UNITS and op["op"] != "nodata"])
    if len(want) >= 2 and have != want[1:] and len(have) >= 2:
        size = f"resize={want[-2]},{want[-1]}"
        last = f"resize={want[0]},{want[1]}"
        for shaped in (
            "grey",
            "channels_first",
            size,
            f"{size};channels_first",
            f"{size};grey",
            last,
            f"{last};grey",
        ):
            text = ";".join(filter(None, (first, shaped, then)))
            if _leads(text, raw, want):
                return f"Say how to get there, e.g. {say('preprocess', text)}"
    if have == want[1:]:
        return (
            f"One step of the model takes {want[0]} of these frames together: {say('hop', 1)} gives it a window "
            f"that slides frame by frame, {say('hop', want[0])} windows end to end"
        )
    return "No preprocessing makes the one of the other: the source is of another kind than what the model was trained on"


def _leads(text: str, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether operations of the command line make a frame that the model takes."""
    ops = parse_ops(text)
    layout = raw_layout(have, any(op["op"] == "channels_first" for op in ops))
    try:
        for op in ops:
            operation = OPERATIONS[op["op"]]
            layout, _ = operation.build(layout, *operation.values(op))
    except EdgeLstmError:
        return False
    return layout.shape in (want, *_without_channel(want))


def _saturate(x: Array, dtype: np.dtype[Any]) -> Array:
    """Nearest integers of ``dtype``; what lies outside becomes its largest or smallest."""
    if np.can_cast(x.dtype, dtype, "safe"):
        return x.astype(dtype)
    limits = np.iinfo(dtype)
    if x.dtype.kind == "f":
        # The largest int64 has no float64: the next one down is the largest that casts back without overflow.
        high = (
            float(limits.max) if int(float(limits.max)) == limits.max else np.nextafter(float(limits.max), 0)
        )
        return np.clip(np.rint(x.astype(np.float64)), float(limits.min), high).astype(dtype)
    own = np.iinfo(x.dtype)
    return np.clip(x, max(own.min, limits.min), min(own.max, limits.max)).astype(dtype)
