"""What a graph gives with our operators beside what it gives as it stands: whole steps, and where values are rounded each operator alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.native.alone import Alone
from edgelstm.runtime.native.session import NativeSession
from edgelstm.runtime.protocol import Array

#: How far results may lie apart, relative to the largest value of a tensor. Both round in float32; a wrong cell is off by far more.
TOLERANCE = 1e-3
#: Whole steps where values are rounded to codes on the way, each operator alone being compared value by value (alone.py): how far they may
#: lie apart in the 2-norm, as part of it, and how many codes may be others. A code that lies between two moves what later layers read.
CODED, CODES_APART = 0.01, 0.1
#: Streams of the comparison: several, but one where they are large, since what a session once took for its work it keeps.
ROWS = 3
LARGE = 1 << 16  # numbers in a stream's frame and states
#: Steps before the one that is compared: then its states are what a stream reaches. One where they are large, for the time it takes.
CARRIED = 2

#: Opens a session of a graph's bytes with our operators in it.
Opener = Callable[[bytes], Any]


@dataclass(frozen=True)
class Trial:
    """A step of a graph as it stands on seeded random frames, and the states that some steps before made of random ones.

    Several streams, so that a row that reads another's shows. names: the graph's outputs. alone: where values are rounded to codes;
    results has its taps too.
    """

    names: list[str]
    feeds: dict[str, Array]
    results: dict[str, Array]
    alone: Alone | None = None

    @classmethod
    def of(cls, session: Any, signature: Signature, alone: Alone | None = None) -> Trial:
        """Run ONNX Runtime's session of the graph as it stands, the taps of ``alone`` among its outputs."""
        axis = signature.stream_axis
        shapes = [t.frame_shape for t in signature.inputs] + [s.frame_shape for s in signature.states]
        large = sum(map(math.prod, shapes)) > LARGE
        rows = axis if isinstance(axis, int) else 1 if large else ROWS
        rng = np.random.default_rng(0)

        def drawn(spec: TensorSpec | StateSpec) -> Array:
            kind, shape = np_dtype(spec.dtype), (rows, *spec.frame_shape)
            # Of True and False there are both: a mask may hide what a cell gives. Whole numbers may be places.
            values = np.zeros(shape) if kind.kind in "iu" else rng.normal(size=shape)
            return values > 0 if kind.kind == "b" else values.astype(kind)

        def initial(s: StateSpec) -> Array:
            return np.repeat(s.initial_value()[None], rows, axis=0)

        states = {
            s.input: initial(s) if np_dtype(s.dtype).kind in "iu" else drawn(s) for s in signature.states
        }
        carried = [s.output for s in signature.states]
        for _ in range(0 if not carried else 1 if large else CARRIED):
            found = session.run(carried, {t.name: drawn(t) for t in signature.inputs} | states)
            # What random states led out of the numbers begins as a stream does.
            states = {
                s.input: value if _finite(value) else initial(s)
                for s, value in zip(signature.states, found, strict=True)
            }
        feeds = {t.name: drawn(t) for t in signature.inputs} | states
        every = [v.name for v in session.get_outputs()]
        results = dict(zip(every, session.run(every, feeds), strict=True))
        return cls([n for n in every if alone is None or n not in alone.taps], feeds, results, alone)

    def trouble(self, session: Any, opener: Opener) -> str | None:
        """None if a session with our operators gives the same, else what differs."""
        found = _run(session, self.names, self.feeds, self.results)
        for name in self.names:
            text = _apart(name, self.results[name], found[name], self.alone is not None)
            if text is not None:
                return text
        if self.alone is None:
            return None
        values = self.feeds | self.results
        # Mostly nothing lies between two codes, and this has told already.
        if self.alone.outputs <= found.keys() and self.alone.trouble(values, found) is None:
            return None
        data, feeds, outputs = self.alone.graph(values)
        results = {called: values[name] for name, called in outputs.items()}
        found = _run(opener(data), list(results), feeds, results)
        return self.alone.trouble(values, {name: found[called] for name, called in outputs.items()})


def _run(
    session: Any, names: Sequence[str], feeds: Mapping[str, Array], like: Mapping[str, Array]
) -> dict[str, Array]:
    if isinstance(session, NativeSession):
        found = session.run(names, feeds, [like[name] for name in names])
    else:
        found = session.run(names, feeds)
    return dict(zip(names, found, strict=True))


def _finite(values: Array) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _norm(values: Array) -> float:
    """The 2-norm; without the threads that NumPy's would start."""
    return math.sqrt(float(np.square(values).sum()))


def _apart(name: str, expected: Array, found: Array, coded: bool = False) -> str | None:
    """What differs in an output. coded: values are rounded to codes on the way."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{name}: {found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}"
    if np.array_equal(expected, found):
        return None
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if expected.dtype in (np.uint8, np.int8):
        steps = np.abs(a - b)
        many = int((steps > 0).sum())
        far = _norm(steps) > CODED * _norm(a - a.mean())
        if coded and many <= CODES_APART * steps.size + 1 and (steps.max() <= 1 or not far):
            return None
        return f"{name}: {many} of {steps.size} codes differ, by up to {steps.max():.0f}"
    if np.abs(a - b).max() <= TOLERANCE:  # the quick way to what follows; false of NaN
        return None
    finite = np.isfinite(a)
    scale = max(1.0, float(np.abs(a[finite]).max(initial=0.0)))
    if np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
        return None
    if coded and finite.all() and _norm(a - b) <= CODED * _norm(a):
        return None
    worst = float(np.nanmax(np.abs(np.where(finite, a - b, np.inf))))
    return f"{name}: off by {worst:.3g} where values reach {scale:.3g}"
