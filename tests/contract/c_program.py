"""The C library as a Program: what the contract asks of every backend, asked of libedgelstm through ctypes."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import c_library
from edgelstm.graph.step import StepModel
from edgelstm.runtime.snapshot import Snapshot

Array = np.ndarray[Any, Any]


class CState:
    """A program of the library with all its streams."""

    def __init__(self, program: c_library.Program, streams: int) -> None:
        self.program = program
        self.streams = [program.stream() for _ in range(streams)]


class CProgram:
    """See :class:`edgelstm.runtime.protocol.Program`."""

    def __init__(
        self,
        step: StepModel,
        streams: int,
        *,
        write: Callable[[StepModel, Path, int], None] | None = None,
        **options: Any,
    ) -> None:
        """write: what makes an engine of the model; it then is opened by TensorRT."""
        self.signature, self.streams, self._options = step.signature, streams, options
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name, "model.plan" if write else "model.onnx")
        if write:
            write(step, self._path, streams)
        else:
            step.save(self._path)
        self._opened: list[c_library.Program] = []

    def new_state(self) -> CState:
        program = c_library.Program(self._path, streams=self.streams, **self._options)
        self._opened.append(program)
        return CState(program, self.streams)

    def step(self, frames: Sequence[Any], state: CState, active: Sequence[int]) -> list[dict[str, Array]]:
        found = state.program.step([(state.streams[k], f) for k, f in zip(active, frames, strict=True)])
        for outputs in found:
            for array in outputs.values():
                array.flags.writeable = False  # they are copies, in memory of the caller's
        return found

    def read_state(self, state: CState, row: int) -> dict[str, Array]:
        path = Path(self._folder.name, "state.npz")
        path.write_bytes(state.streams[row].save())
        return dict(Snapshot.load(path))

    def write_state(self, state: CState, row: int, values: Mapping[str, Array]) -> None:
        held = io.BytesIO()
        np.savez(held, **values)
        state.streams[row].load(held.getvalue())

    def close(self) -> None:
        for program in self._opened:
            program.__exit__()
        self._opened.clear()
        self._folder.cleanup()
