"""What the GPU backends share: a Program whose state is in device memory, with frames and outputs in locked host memory."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.device import OutputPlace
from edgelstm.runtime.device_array import DeviceArray, as_device_array
from edgelstm.runtime.device_memory import DeviceMemory, Engine
from edgelstm.runtime.protocol import Array, Frame, Outputs
from edgelstm.runtime.rows import CallSize, RowProgram, RowState, capacity


class GpuProgram(RowProgram):
    """A Program on a GPU. ``engine`` is opened already, and is closed with the program.

    outputs: "host" gives NumPy arrays, "device" :class:`~edgelstm.runtime.device_array.DeviceArray`.

    Raises EdgeLstmError when the GPU's memory is too small for the buffers.
    """

    def __init__(
        self,
        signature: Signature,
        streams: int,
        size: CallSize,
        cuda: Cuda,
        engine: Engine,
        *,
        outputs: OutputPlace = "host",
    ) -> None:
        self._cuda = cuda
        with cuda:
            memory = DeviceMemory(signature, capacity(streams, size), size, cuda, engine, outputs)
        super().__init__(signature, streams, memory.size, memory)
        self._begin = memory.begin
        # One that nobody closes gives its memory back when nobody can use it any more. Outputs on the GPU may still be in
        # somebody's hands then (an array that shares their memory says nothing of it): those stay, with a warning.
        self._finalizer = weakref.finalize(self, _abandoned, memory, outputs == "host")
        self._finalizer.atexit = False

    def close(self) -> None:
        """Free the engine and its buffers; calling it again does nothing."""
        self._finalizer.detach()
        super().close()

    def new_state(self) -> RowState:
        """All rows at their initial value."""
        with self._cuda:
            return super().new_state()

    def step(self, frames: Sequence[Frame], state: RowState, active: Sequence[int]) -> list[Outputs]:
        """Advance rows ``active``; see the protocol. Frames may hold what :meth:`device_frame` gave."""
        with self._cuda:
            self._begin()
            return super().step(frames, state, active)

    def step_arrays(self, frames: Sequence[Any], state: RowState, active: Sequence[int]) -> list[Outputs]:
        """See :meth:`RowProgram.step_arrays`. With names: which of them lie on the host has to be known where some do not."""
        name = self.signature.inputs[0].name
        return self.step([{name: frame} for frame in frames], state, active)

    def step_row(self, frame: Any, state: RowState, row: int) -> Outputs:
        """See :meth:`RowProgram.step_row`."""
        cuda = self._cuda
        cuda.enter()
        try:
            self._begin()
            return super().step_row(frame, state, row)
        finally:
            cuda.leave()

    def step_rows(self, frames: Mapping[str, Any], state: RowState, first: int, count: int) -> Outputs | None:
        """See :meth:`RowProgram.step_rows`."""
        with self._cuda:
            self._begin()
            return super().step_rows(frames, state, first, count)

    def warm_up(self, state: RowState) -> None:
        """See :meth:`RowProgram.warm_up`: contexts are made and graphs captured."""
        with self._cuda:
            super().warm_up(state)

    def read_state(self, state: RowState, row: int) -> dict[str, Array]:
        """A copy of one row's state by name."""
        with self._cuda:
            return super().read_state(state, row)

    def write_state(self, state: RowState, row: int, values: Mapping[str, Array]) -> None:
        """Set one row's state; see :meth:`RowProgram.write_state`."""
        with self._cuda:
            super().write_state(state, row, values)

    def device_frame(self, value: Any) -> DeviceArray | None:
        """``value`` for a frame if it is an array on the GPU, not copied; None if it is anything else."""
        return as_device_array(self._cuda, value)


def _abandoned(memory: DeviceMemory, free: bool) -> None:
    what = "it is closed now" if free else "its memory on the GPU stays taken, since its outputs lie there"
    warnings.warn(f"a program on a GPU was never closed; {what}", ResourceWarning, stacklevel=2)
    if free:
        memory.close()


def check_outputs(outputs: str) -> None:
    """Raise EdgeLstmError for a place that outputs can't be in."""
    if outputs not in get_args(OutputPlace):
        raise EdgeLstmError("outputs", found=outputs, expected=" or ".join(get_args(OutputPlace)))
