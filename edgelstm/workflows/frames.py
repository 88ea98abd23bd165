"""What the workflows share: frames for a model from a source, from arrays or drawn, and preprocessing as it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.runtime.protocol import Array, Frame

if TYPE_CHECKING:
    pass


#: Frames for which export streams source and result side by side.
STEPS = 200


Progress = Callable[[int], None]


#: Operations by input name, or text as ``--preprocess`` takes it.
Preprocessing = Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[str]


def operations(
    signature: Signature, preprocess: Preprocessing | None
) -> Mapping[str, Sequence[Mapping[str, Any]]] | None:
    if preprocess is None or isinstance(preprocess, Mapping):
        return preprocess
    from edgelstm.pipeline import parse_preprocess

    return parse_preprocess(preprocess, signature)


def ready_frames(
    signature: Signature,
    frames: str | Iterable[Array | Frame] | None,
    steps: int,
    preprocess: Preprocessing | None = None,
    arrived: Callable[[Frame, Any], None] | None = None,
) -> Iterator[Frame]:
    """At most ``steps`` single frames (never windows), ready for the model; ``arrived`` gets them with the raw ones."""
    if isinstance(frames, str):
        from edgelstm.pipeline import Inputs, open_source

        inputs = Inputs(signature, operations(signature, preprocess))
        with open_source(frames, limit=steps) as source:
            for raw in source:
                ready: Frame = inputs(raw)
                if arrived is not None:
                    arrived(ready, raw.data)
                yield ready
    elif frames is not None:
        for k, frame in zip(range(steps), frames, strict=False):
            ready = _checked(signature, k, frame)
            if arrived is not None:
                arrived(ready, None)
            yield ready
    else:
        rng = np.random.default_rng(0)
        for _ in range(steps):
            yield {t.name: _noise(rng, _frame_shape(signature, t), t.dtype) for t in signature.inputs}


def _checked(signature: Signature, index: int, frame: Array | Frame) -> Frame:
    """A user's frame by input name: Programs take what they are given, so a wrong one has to be refused here."""
    names = [t.name for t in signature.inputs]
    named = frame if isinstance(frame, Mapping) else {names[0]: frame}
    if set(named) != set(names):
        raise EdgeLstmError(f"frame {index}", found=f"inputs {', '.join(named)}", expected=", ".join(names))
    for t in signature.inputs:
        array, shape, dtype = named[t.name], _frame_shape(signature, t), np_dtype(t.dtype)
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


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    kind = np_dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    return rng.integers(0, 2, shape).astype(kind)
