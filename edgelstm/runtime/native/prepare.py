"""Whether a step graph is opened with our operators, and with which bytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.runtime.native.cells import FEW_STREAMS, SMALL, rewrite
from edgelstm.runtime.native.library import BUILD_HINT, OLDEST_ONNXRUNTIME, NativeLibrary, find_native_library
from edgelstm.runtime.protocol import Array

VARIABLE = "EDGELSTM_NATIVE"
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


def say_once(text: str) -> None:
    """A warning in the log, the first time only."""
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)


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
