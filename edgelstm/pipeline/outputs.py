"""From what a model gives to the units that people read: the way back of its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from edgelstm.dtypes import CODED, to_float32
from edgelstm.errors import EdgeLstmError, count_of, some
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.operations import Array, Transform
from edgelstm.pipeline.postprocess import Before, Postprocess
from edgelstm.pipeline.preprocess import inverse
from edgelstm.pipeline.units import physical

Op = Mapping[str, Any]
Units = Literal["model", "physical", "source"]


class Outputs:
    """From a model's outputs to other units, by undoing what the preprocessing did to the frames.

    >>> outputs = edgelstm.Outputs(runner.signature, units="physical")
    >>> rain = outputs(stream.step(inputs(raw)))["forecast"]  # mm/h, where the model works on its logarithm

    units: ``model`` leaves values as they are; ``physical`` undoes logarithm and normalization (mm/h of rain, 0 to 1 of
    brightness); ``source`` undoes scales too (0 to 255 of a camera's pixels, counts of a radar's file).
    postprocess: operations by output name that take the place of those that the model declares; each stream has a
    memory of its own (``stream``), and ``raw`` is the frame as it came.

    Outputs that have the shape of a frame, or of several side by side, are forecasts of frames and are converted, to
    float32: :attr:`converted` names them. All others stay; what travels as bits (bfloat16, float8) becomes float32. :attr:`signature` is the model's with the outputs as they come
    out. overrides: as for :class:`Inputs`. Raises EdgeLstmError where units are asked for and no output has any, or
    what was done can't be undone.
    """

    def __init__(
        self,
        signature: Signature,
        overrides: Mapping[str, Sequence[Op]] | None = None,
        *,
        units: Units = "model",
        postprocess: Mapping[str, Sequence[Op]] | None = None,
    ) -> None:
        if units not in get_args(Units):
            raise EdgeLstmError("units", found=units, expected=" or ".join(get_args(Units)))
        self.units = units
        self._dtypes = {t.name: t.dtype for t in signature.outputs}
        self._undo: dict[str, Transform] = {}
        self.signature = signature
        if units != "model":
            found = frame_outputs(signature)
            if not found:
                raise EdgeLstmError(
                    f"units={units}",
                    found=", ".join(f"output {t.name} {list(t.frame_shape)}" for t in signature.outputs),
                    expected=f"an output like the frames {list(signature.inputs[0].frame_shape)}, whose units are theirs",
                )
            spec = signature.inputs[0]
            ops = {**signature.preprocessing, **(overrides or {})}.get(spec.name, ())
            undo = physical(ops) if units == "physical" else inverse(ops)
            self._undo = dict.fromkeys(found, undo)
        self._coded = frozenset(name for name, dtype in self._dtypes.items() if dtype in CODED)
        if self._undo or self._coded:
            self.signature = replace(
                signature,
                outputs=tuple(
                    replace(t, dtype="float32") if t.name in self._undo or t.name in self._coded else t
                    for t in signature.outputs
                ),
                states=(),
            )
        self.converted = tuple(self._undo)
        post = {**signature.postprocessing, **(postprocess or {})}
        spec = signature.inputs[0]
        before = Before({**signature.preprocessing, **(overrides or {})}.get(spec.name, ()), spec)
        #: Of outputs that are blocks of sound to be added where they overlap: samples from block to block.
        self.hops = {
            name: int(op["hop"]) for name, ops in post.items() for op in ops if op.get("op") == "overlap_add"
        }
        self._post = {
            name: Postprocess(ops, signature.output(name), before) for name, ops in post.items() if ops
        }
        if self._post and signature.window is not None:
            raise EdgeLstmError(
                f"postprocessing of a window of {count_of(signature.window, 'frame')}",
                expected="a model of one step",
                hint="Export without --window",
            )
        if self._post:
            self.signature = replace(
                self.signature,
                outputs=tuple(
                    replace(t, dtype="float32", shape=(t.shape[0], *self._post[t.name].shape))
                    if t.name in self._post
                    else t
                    for t in self.signature.outputs
                ),
                states=(),
                window=None,
                postprocessing={},
            )

    def check_hop(self, source: tuple[int, int] | None) -> None:
        """EdgeLstmError unless blocks are added at the hop (rate, samples) that the source is cut at: the sound would be another."""
        for name, hop in self.hops.items():
            if source is not None and hop != source[1]:
                raise EdgeLstmError(
                    f"blocks of output {name!r} are added every {count_of(hop, 'sample')} ('overlap_add={hop}')",
                    found=f"a source cut every {source[1]}",
                    expected=f"{hop}",
                    hint=f"A hop of {hop}, or the postprocessing overlap_add={source[1]}",
                )

    def __repr__(self) -> str:
        undone = f", undone: {some(self._undo)}" if self._undo else ""
        return f"Outputs({some(self._dtypes)}{undone})"

    def __call__(
        self, outputs: Mapping[str, Array], raw: Any = None, stream: str | None = None
    ) -> dict[str, Array]:
        """Outputs by name; those not converted are passed on as they are."""
        made = {
            name: self._undo[name](to_float32(array, self._dtypes[name]))
            if name in self._undo
            else to_float32(array, self._dtypes[name])
            if name in self._coded
            else np.asarray(array)
            for name, array in outputs.items()
        }
        for name, post in self._post.items():
            made[name] = post(to_float32(made[name], self.signature.output(name).dtype), raw, stream)
        return made

    def frame(self, values: Array, dtype: str) -> Array:
        """A frame as the model took it, float32, in the units of the outputs that are frames."""
        undo = next(iter(self._undo.values()), None)
        return to_float32(values, dtype) if undo is None else undo(to_float32(values, dtype))

    def forget(self, stream: str | None = None) -> None:
        """Begin anew for a stream: what postprocessing remembers of it."""
        for post in self._post.values():
            post.forget(stream)


def readable(
    signature: Signature,
    overrides: Mapping[str, Sequence[Op]] | None = None,
    postprocess: Mapping[str, Sequence[Op]] | None = None,
) -> Outputs:
    """For maps and pictures with captions, where nobody said otherwise: in physical units, where there are any."""
    try:
        return Outputs(signature, overrides, units="physical", postprocess=postprocess)
    except EdgeLstmError:  # nothing with units: values as the model gives them
        return Outputs(signature, overrides, postprocess=postprocess)


def frame_outputs(signature: Signature) -> list[str]:
    """Names of the outputs made of frames, [*frame] or [K, *frame], for a model with one input."""
    if len(signature.inputs) != 1:
        return []
    own = 0 if signature.window is None else 1
    frame = signature.inputs[0].frame_shape[own:]
    shapes = {t.name: t.frame_shape[own:] for t in signature.outputs}
    return [name for name, shape in shapes.items() if frame and frame in (shape, shape[1:])]


def handed_on(outputs: Mapping[str, Array], after: Signature) -> Array | dict[str, Array]:
    """Outputs of one model as the frame of the next: by name, or the only one for the only input."""
    names = [t.name for t in after.inputs]
    if all(name in outputs for name in names):
        return {name: outputs[name].copy() for name in names}
    if len(outputs) == len(names) == 1:
        only: Array = next(iter(outputs.values())).copy()  # the next step writes over it
        return only
    raise EdgeLstmError(
        "models in series",
        found=f"outputs {some(outputs)}",
        expected=f"the inputs of the next: {some(names)}",
    )
