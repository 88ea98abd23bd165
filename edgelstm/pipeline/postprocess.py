"""What is done to a model's outputs before they go anywhere: from masks of a spectrum to sound, from scores to marks.

Declared in the Signature (``postprocessing``) like preprocessing, or given by ``run --postprocess``. Some operations remember: each
stream has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.operations import Array, Key, Layout, Operation
from edgelstm.pipeline.optext import parse_ops
from edgelstm.pipeline.preprocess import Preprocess

Op = Mapping[str, Any]
#: ``apply(values, raw)``: raw is the frame as it came from the source, where there is one.
Apply = Callable[[Array, Any], Array]


@dataclass(frozen=True)
class Before:
    """What was done to the frame whose output this is: the input's operations and the input."""

    ops: Sequence[Op]
    spec: TensorSpec


def _mask_spectrum(layout: Layout, before: Before) -> tuple[Layout, Callable[[], Apply]]:
    names = [op["op"] for op in before.ops]
    if "magnitude" not in names or "samples" not in names:
        raise EdgeLstmError(
            "masks the spectrum that the frame's magnitude was taken of",
            found=f"preprocessing {', '.join(names) or 'none'}",
            expected="'samples=...;magnitude'",
        )
    place = names.index("magnitude")
    length = before.ops[names.index("samples")]["length"]
    bins = length // 2 + 1
    if int(np.prod(layout.shape)) != bins:
        raise EdgeLstmError(
            "mask",
            found=list(layout.shape),
            expected=f"{count_of(bins, 'value')}, of {count_of(length, 'sample')}",
        )
    block = Preprocess(before.ops[:place], TensorSpec("block", "float32", ("N", length)))

    def apply(mask: Array, raw: Any) -> Array:
        if raw is None:
            raise EdgeLstmError("mask_spectrum", found="outputs alone", expected="the raw frame beside them")
        masked = np.fft.rfft(block(np.asarray(raw)).astype(np.float64)) * mask.reshape(bins)
        sound: Array = np.fft.irfft(masked, length).astype(np.float32)
        return sound

    return Layout((length,)), lambda: apply


def _overlap_add(layout: Layout, before: Before, hop: int) -> tuple[Layout, Callable[[], Apply]]:
    length = int(np.prod(layout.shape))
    if not 1 <= hop <= length:
        raise EdgeLstmError("hop", found=hop, expected=f"1 to {length}, the samples of a block")

    def fresh() -> Apply:
        buffer = np.zeros(length, np.float32)

        def apply(values: Array, raw: Any) -> Array:
            buffer[:-hop] = buffer[hop:].copy()
            buffer[-hop:] = 0
            buffer[:] += values.reshape(length)
            done: Array = buffer[:hop].copy()
            return done

        return apply

    return Layout((hop,)), fresh


def _threshold(layout: Layout, before: Before, value: float) -> tuple[Layout, Callable[[], Apply]]:
    return layout, lambda: lambda values, raw: (values >= np.float32(value)).astype(np.float32)


POST_OPERATIONS: Mapping[str, Operation] = {
    "mask_spectrum": Operation(
        _mask_spectrum,
        (),
        "the output masks the spectrum of the frame whose `magnitude` went in; back to samples, with the frame's phases",
    ),
    "overlap_add": Operation(
        _overlap_add,
        (Key("hop", "integer"),),
        "blocks of samples added where they overlap; `hop` samples come out a step, so a block is complete length - hop samples late",
    ),
    "threshold": Operation(
        _threshold, (Key("value", "number"),), "1 where a value is at least `value`, else 0"
    ),
}


class Postprocess:
    """``postprocess(values, raw, stream)`` for one output; :attr:`shape` is what comes out, float32."""

    def __init__(self, ops: Sequence[Op], spec: TensorSpec, before: Before) -> None:
        self._made: list[Callable[[], Apply]] = []
        self._streams: dict[str | None, list[Apply]] = {}
        layout = Layout(spec.frame_shape)
        for index, op in enumerate(ops):
            name = op.get("op") if isinstance(op, Mapping) else None
            where = f"postprocessing of output {spec.name!r}, operation {index + 1}"
            if not isinstance(name, str) or name not in POST_OPERATIONS:
                raise EdgeLstmError(
                    f"{where}: unknown operation",
                    found=repr(op if name is None else name),
                    expected=f"one of {', '.join(POST_OPERATIONS)}",
                )
            operation = POST_OPERATIONS[name]
            try:
                layout, fresh = operation.build(layout, before, *operation.values(op))
            except EdgeLstmError as error:
                raise EdgeLstmError(
                    f"{where} ({name}): {error.what}",
                    found=error.found,
                    expected=error.expected,
                    hint=error.hint,
                ) from error
            self._made.append(fresh)
        self.shape = layout.shape

    def __call__(self, values: Array, raw: Any, stream: str | None) -> Array:
        """What comes out for one step of ``stream``; ``raw`` is the frame as it came."""
        applies = self._streams.get(stream)
        if applies is None:
            applies = self._streams[stream] = [fresh() for fresh in self._made]
        for apply in applies:
            values = apply(values, raw)
        return values

    def forget(self, stream: str | None) -> None:
        """Begin anew for this stream."""
        self._streams.pop(stream, None)


def parse_postprocess(texts: Sequence[str], signature: Signature) -> dict[str, list[dict[str, Any]]]:
    """Output name to operations from ``--postprocess`` options: ``ops``, or ``output:ops`` for a model with several."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        name, _, ops = text.rpartition(":")
        if not name and len(signature.outputs) != 1:
            raise EdgeLstmError(
                f"postprocessing {text!r} does not say for which output",
                expected=f"'NAME:{ops}' with one of {', '.join(t.name for t in signature.outputs)}",
            )
        spec = signature.output(name) if name else signature.outputs[0]
        chosen[spec.name] = parse_ops(ops, POST_OPERATIONS)
    return chosen
