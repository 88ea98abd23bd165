"""What the workflows share: frames for a model from a source, from arrays or drawn, and preprocessing as it is given."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.dtypes import CODED, from_float32, np_dtype
from edgelstm.errors import EdgeLstmError, some
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.runtime.frames import unmasked
from edgelstm.runtime.protocol import Array, Frame

log = logging.getLogger(__name__)

#: Frames for which export streams source and result side by side.
STEPS = 200


Progress = Callable[[int], None]


@dataclass(frozen=True)
class Draw:
    """How frames are made where nobody gives any. limits: by integer input, the first whole number that is never drawn."""

    text: str
    make: Callable[[np.random.Generator, tuple[int, ...]], Array]
    limits: Mapping[str, int] = field(default_factory=dict)

    def with_limits(self, limits: Mapping[str, int]) -> Draw:
        """The same with whole numbers below ``limits`` for those inputs."""
        if not limits:
            return self
        ids = ", ".join(f"0 to {limit - 1} for {name}" for name, limit in limits.items())
        return Draw(f"{self.text} and whole numbers, {ids}", self.make, {**self.limits, **limits})

    def frame(self, rng: np.random.Generator, signature: Signature) -> Frame:
        """One frame."""
        return {t.name: self._values(rng, _frame_shape(signature, t), t) for t in signature.inputs}

    def _values(self, rng: np.random.Generator, shape: tuple[int, ...], spec: TensorSpec) -> Array:
        kind = np_dtype(spec.dtype)
        if kind.kind == "f":
            return self.make(rng, shape).astype(kind)
        if spec.dtype in CODED:
            return from_float32(self.make(rng, shape).astype(np.float32), spec.dtype)
        return rng.integers(0, self.limits.get(spec.name, 2), shape).astype(kind)


#: Frames to try in turn, until the model gives numbers for them: logarithms, roots and counts want no negative ones.
DRAWS = (
    Draw("seeded normal noise", lambda rng, shape: rng.standard_normal(shape)),
    Draw(
        "the absolute values of seeded normal noise, since negative numbers give NaN",
        lambda rng, shape: np.abs(rng.standard_normal(shape)),
    ),
    Draw(
        "seeded noise from 0 to 1, since other numbers give NaN or infinity",
        lambda rng, shape: rng.uniform(0.0, 1.0, shape),
    ),
    Draw(
        "seeded noise from 1 to 2, since other numbers give NaN or infinity",
        lambda rng, shape: rng.uniform(1.0, 2.0, shape),
    ),
)


#: Operations by input name, or text as ``--preprocess`` takes it.
Preprocessing = Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[str]


def operations(
    signature: Signature, preprocess: Preprocessing | None
) -> Mapping[str, Sequence[Mapping[str, Any]]] | None:
    if preprocess is None or isinstance(preprocess, Mapping):
        return preprocess
    from edgelstm.pipeline import parse_preprocess

    return parse_preprocess(preprocess, signature)


def texts(signature: Signature, preprocess: Preprocessing | None) -> list[str]:
    """What was given, as ``--preprocess`` takes it."""
    from edgelstm.pipeline import format_ops

    several = len(signature.inputs) > 1
    return [
        (f"{name}:" if several else "") + format_ops(ops)
        for name, ops in (operations(signature, preprocess) or {}).items()
    ]


def say_left_out(signature: Signature, ops: Mapping[str, Sequence[Mapping[str, Any]]] | None) -> None:
    """Warn where ``ops`` take the place of declared ones that bring frames to the model's units, and bring them to none."""
    from edgelstm.pipeline import format_ops
    from edgelstm.pipeline.preprocess import SCALING

    for name, given in (ops or {}).items():
        declared = [op for op in signature.preprocessing.get(name, ()) if op["op"] in SCALING]
        if declared and not any(op["op"] in SCALING for op in given):
            log.warning(
                "preprocessing of input %r: what is given takes the place of what the model declares, and leaves out "
                "'%s'; add it, unless the frames come scaled already",
                name,
                format_ops(declared),
            )


def check_hop(hop: int | None, source: object) -> None:
    """Raise EdgeLstmError for a hop where no source is cut by it: arrays come as the model takes them."""
    if hop is not None and not isinstance(source, str):
        raise EdgeLstmError(
            f"a hop of {hop}",
            found="no source" if source is None else "arrays, which come as the model takes them",
            expected="a source whose frames it cuts into windows",
            hint="Leave it out",
        )


def ready_frames(
    signature: Signature,
    frames: str | Iterable[Array | Frame] | None,
    limit: int | None,
    preprocess: Preprocessing | None = None,
    arrived: Callable[..., None] | None = None,
    draw: Draw | None = None,
    hop: int | None = None,
    calls: int | None = None,
    quiet: bool = False,
) -> Iterator[Frame]:
    """Frames ready for the model: of the first ``limit`` of the source, what makes at most ``calls`` steps of it.

    Single frames, also where a window was exported from a step; with ``hop`` (see :class:`edgelstm.Inputs`) the windows of a
    model whose step takes several frames together, of which there is at least one. ``arrived`` gets single frames with the raw ones.
    draw: how they are made without ``frames``; normal noise unless told. quiet: frames left out at the end were told before.
    """
    check_hop(hop, frames)
    each = signature.window or 1
    most = min(x for x in (limit, None if calls is None else calls * each, sys.maxsize) if x is not None)
    if isinstance(frames, str):
        from edgelstm.pipeline import Inputs, open_source
        from edgelstm.pipeline.inputs import cut, of_one_stream

        ops = operations(signature, preprocess)
        say_left_out(signature, ops)
        with open_source(frames) as opened, cut(opened, signature, ops, hop)[0] as source:
            hop = None if opened.is_sound else hop
            inputs = Inputs(signature, ops, hop=hop)
            if hop not in (None, signature.window):
                assert inputs.window is not None
                assert hop is not None
                made = max(1, inputs.calls(limit or sys.maxsize))
                made = min(made, calls or made)
                source.limit(min((made - 1) * hop + inputs.window, sys.maxsize))
                for _, arrays in inputs.steps(of_one_stream(source), quiet=quiet):
                    yield from single_frames(arrays, signature.window)
                return
            source.limit(most)
            for raw in of_one_stream(source):
                ready: Frame = inputs(raw)
                if arrived is not None:
                    arrived(ready, raw.data, gap=raw.gap is not None)
                yield ready
    elif frames is not None:
        for k, frame in zip(range(most), frames, strict=False):
            ready = _checked(signature, k, frame)
            if arrived is not None:
                arrived(ready)
            yield ready
    else:
        rng, draw = np.random.default_rng(0), draw or DRAWS[0]
        for _ in range(most):
            yield draw.frame(rng, signature)


def single_frames(arrays: Frame, window: int | None) -> Iterator[Frame]:
    """``arrays``, or the single frames of an exported ``window``."""
    if window is None:
        yield arrays
        return
    for t in range(window):
        yield {name: np.ascontiguousarray(value[t]) for name, value in arrays.items()}


def _checked(signature: Signature, index: int, frame: Array | Frame) -> Frame:
    """A user's frame by input name: Programs take what they are given, so a wrong one has to be refused here."""
    names = [t.name for t in signature.inputs]
    named = frame if isinstance(frame, Mapping) else {names[0]: frame}
    if set(named) != set(names):
        raise EdgeLstmError(f"frame {index}", found=f"inputs {some(named)}", expected=some(names))
    for t in signature.inputs:
        array, shape, dtype = named[t.name], _frame_shape(signature, t), np_dtype(t.dtype)
        if isinstance(array, np.ma.MaskedArray):
            array = unmasked(array)
            named = {**named, t.name: array}
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            what = (
                f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            )
            raise EdgeLstmError(
                f"frame {index}, input {t.name!r}",
                found=what,
                expected=f"a NumPy array {t.dtype}{list(shape)}",
            )
    return named


def _frame_shape(signature: Signature, spec: TensorSpec) -> tuple[int, ...]:
    """Shape of a single frame, for a window too."""
    return spec.frame_shape[1:] if signature.window else spec.frame_shape
