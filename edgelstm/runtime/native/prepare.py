"""Whether a step graph is opened with our operators, and with which bytes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.native.cells import FEW_STREAMS, SMALL, rewrite
from edgelstm.runtime.native.library import BUILD_HINT, OLDEST_ONNXRUNTIME, NativeLibrary, find_native_library
from edgelstm.runtime.native.session import NativeSession
from edgelstm.runtime.protocol import Array

VARIABLE = "EDGELSTM_NATIVE"
#: How far results may lie apart, relative to the largest value of a tensor. Both round in float32; a wrong cell is off by far more.
TOLERANCE = 1e-3
#: How far apart they may lie in the 2-norm, as part of it, where values are rounded to codes on the way.
CODED = 0.01
#: How many of a tensor's codes may be off by one, as part of all.
CODES_APART = 0.01
#: How many may be off by any number where gates read codes too, of which one here and there is another: then that moves h by some.
CODES_MOVED = 0.1
#: Streams of the comparison: several, but one where they are large, since what a session once took for its work it keeps.
ROWS = 3
LARGE = 1 << 16  # numbers in a stream's frame and states

#: Whoever sets one of these means it: then what does not fit is an error.
NAMED = ("EDGELSTM_NATIVE_LIBRARY", "EDGELSTM_NATIVE_ISA")

#: Kernels (NativeLibrary.instructions) of x86 processors without VNNI. Of Arm's, ONNX Runtime's are fast there without.
NO_PRODUCTS_OF_BYTES = ("avx512", "avx2", "portable")

log = logging.getLogger(__name__)
_said: set[str] = set()


@dataclass(frozen=True)
class Native:
    """A step graph's bytes with our operators in it: how many of each, the library that computes them, and what is lent to it
    (see :class:`edgelstm.runtime.native.cells.Rewritten`)."""

    data: bytes
    counts: Mapping[str, int]
    library: NativeLibrary
    matrices: Mapping[int, Array]

    def __str__(self) -> str:
        return ", ".join(f"{count} {op}" for op, count in self.counts.items())


def prepare(
    model: PathLike | bytes,
    threads: int,
    streams: int,
    onnxruntime: str,
    wanted: bool | None = None,
    *,
    lend: bool = True,
) -> Native | None:
    """The step graph with our operators; None where it is to be opened as it is.

    threads, streams, lend: see :func:`edgelstm.runtime.native.cells.rewrite`. onnxruntime: the version that will open it. wanted:
    False: never; None: where a library is found and fits (one that does not is told of in the log, once); True: an EdgeLstmError
    says what is missing. ``$EDGELSTM_NATIVE`` answers for None: 0: never; 1: the library has to be there, whatever models are opened.
    """
    needed = wanted if wanted is not None else _from_environment()
    if needed is False:
        return None
    try:
        library = find_native_library()
        if library is not None:
            _check_instructions(library)
        if library is not None and _numbers(onnxruntime) < OLDEST_ONNXRUNTIME:
            oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
            raise EdgeLstmError(
                "our operators for ONNX Runtime",
                found=f"ONNX Runtime {onnxruntime}",
                expected=f"{oldest} or later",
            )
    except EdgeLstmError as error:
        if needed or any(os.environ.get(name) for name in NAMED):
            raise
        say_once(str(error))
        return None
    if library is None:
        if needed:
            raise EdgeLstmError("the library of operators for ONNX Runtime is not here", hint=BUILD_HINT)
        return None
    data = model if isinstance(model, bytes) else read_bytes(model)
    # Whose kernels are these has no instruction for products of bytes, or is not to use it.
    slow = b"QuantizeLinear" in data and library.instructions() in NO_PRODUCTS_OF_BYTES
    rewritten = rewrite(data, threads, streams, lend=lend, bytes_slow=slow)
    if rewritten is None:
        if wanted:
            raise EdgeLstmError(
                f"{'model' if isinstance(model, bytes) else model} has nothing that our operators compute",
                expected="LSTM or GRU cells, or FusedGates, in float32, with the weights in the model's file",
                hint=None
                if streams <= FEW_STREAMS
                else f"For more than {FEW_STREAMS} streams cells of more than {SMALL} weights are ONNX Runtime's own, which is faster",
            )
        return None
    return Native(rewritten.data, rewritten.counts, library, rewritten.matrices)


def available() -> bool:
    """Whether step graphs with cells are opened with our operators where nothing is said."""
    try:
        return _from_environment() is not False and find_native_library() is not None
    except EdgeLstmError:
        return False


@dataclass(frozen=True)
class Trial:
    """What a graph gives for one step on seeded random frames and states: several streams, so that a row that reads another's shows."""

    feeds: dict[str, Array]
    names: list[str]
    results: list[Array]

    @classmethod
    def of(cls, session: Any, signature: Signature) -> Trial:
        """Run ONNX Runtime's session of the graph as it stands."""
        axis = signature.stream_axis
        shapes = [t.frame_shape for t in signature.inputs] + [s.frame_shape for s in signature.states]
        rows = axis if isinstance(axis, int) else 1 if sum(map(math.prod, shapes)) > LARGE else ROWS
        rng = np.random.default_rng(0)
        feeds: dict[str, Array] = {}
        specs: list[tuple[str, TensorSpec | StateSpec]] = [(t.name, t) for t in signature.inputs]
        for name, spec in (*specs, *((s.input, s) for s in signature.states)):
            kind, shape = np_dtype(spec.dtype), (rows, *spec.frame_shape)
            # Whole numbers may be places. Of True and False there are both: a mask may hide what a cell gives.
            values = np.zeros(shape) if kind.kind in "iu" else rng.normal(size=shape)
            feeds[name] = values > 0 if kind.kind == "b" else values.astype(kind)
        names = [v.name for v in session.get_outputs()]
        return cls(feeds, names, session.run(names, feeds))

    def trouble(self, session: Any, coded: bool = False) -> str | None:
        """None if a session with our operators gives the same, else what differs. coded: values are rounded to codes on the way, of which
        one here and there may be another, and then what is made of it."""
        if isinstance(session, NativeSession):
            found = session.run(self.names, self.feeds, self.results)
        else:
            found = session.run(self.names, self.feeds)
        pairs = zip(self.names, self.results, found, strict=True)
        return next((text for n, a, b in pairs if (text := _apart(n, a, b, coded))), None)


def say_once(text: str) -> None:
    """A warning in the log, the first time only."""
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)


def _apart(name: str, expected: Array, found: Array, coded: bool = False) -> str | None:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{name}: {found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}"
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if expected.dtype in (np.uint8, np.int8):
        # Codes: what lies near the middle between two may become either. Where all of it is off by one, a zero point is.
        steps = np.abs(a - b)
        many = int((steps > 0).sum())
        if steps.max(initial=0.0) <= 1 and many <= CODES_APART * steps.size + 1:
            return None
        moved = many <= CODES_MOVED * steps.size and np.linalg.norm(steps) <= CODED * np.linalg.norm(
            a - a.mean()
        )
        if coded and moved:
            return None
        return f"{name}: {many} of {steps.size} codes differ, by up to {steps.max():.0f}"
    finite = np.isfinite(a)
    scale = max(1.0, float(np.abs(a[finite]).max(initial=0.0)))
    if np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
        return None
    if coded and finite.all() and np.linalg.norm(a - b) <= CODED * np.linalg.norm(a):
        return None
    worst = float(np.nanmax(np.abs(np.where(finite, a - b, np.inf))))
    return f"{name}: off by {worst:.3g} where values reach {scale:.3g}"


def _check_instructions(library: NativeLibrary) -> None:
    """Raise EdgeLstmError where ``$EDGELSTM_NATIVE_ISA`` names kernels that the library or the processor lacks."""
    named = os.environ.get("EDGELSTM_NATIVE_ISA")
    if named and (found := library.instructions()) != named:
        raise EdgeLstmError(
            f"EDGELSTM_NATIVE_ISA={named}",
            found=f"{found} as the best here",
            expected="avx512vnni, avx512, avx2vnni, avx2 or portable, of those that this processor has (on Arm: neondot or neon)",
        )


def _from_environment() -> bool | None:
    text = os.environ.get(VARIABLE, "").strip().lower()
    known: dict[str, bool | None] = {
        "": None,
        "0": False,
        "off": False,
        "no": False,
        "1": True,
        "on": True,
        "yes": True,
    }
    if text not in known:
        raise EdgeLstmError(
            f"{VARIABLE}={text}", expected="0 (never), 1 (always), or unset (where the library is built)"
        )
    return known[text]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
