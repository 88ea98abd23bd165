"""A torch step as a Program: what an export is compared with, and torch's place in ``verify``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import thread_time
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.package import import_torch
from edgelstm.runtime.protocol import Array, Frame, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from edgelstm.frontends.torch.torch_step import TorchStep
    from edgelstm.frontends.torch.windows import TorchWindow

#: Seconds of computing a step up to which one thread does it.
SHORT = 0.2
#: One tensor [streams, ...] per state, in the Signature's order.
State = list["Tensor"]


class TorchProgram:
    """Runs the module itself (not what the export makes of it), eagerly or after ``torch.compile``.

    ``threads`` is torch's setting for the whole process; None leaves it alone. double: all in float64. Idle rows are not computed at all, so
    nothing leaks into them. See :class:`edgelstm.runtime.protocol.Program`.
    """

    def __init__(
        self,
        step: TorchStep | TorchWindow,
        *,
        streams: int = 1,
        threads: int | None = None,
        compile: bool = False,
        double: bool = False,
    ) -> None:
        torch = import_torch()
        if threads is not None:
            torch.set_num_threads(threads)
        self.signature = step.signature
        self.streams = streams
        self._torch, self._step, self._double = torch, step, double
        self._alone, self._before = False, 0
        self._call: Any = torch.compile(step, dynamic=False) if compile else step
        if double:
            from edgelstm.frontends.torch.double import InDouble

            self._call = InDouble(step)

    def exact(self) -> TorchProgram:
        """The same module in float64, its results unrounded."""
        return self._for_proof(TorchProgram(self._step, streams=self.streams, double=True))

    def rounded(self) -> TorchProgram:
        """The module as it is."""
        return self._for_proof(TorchProgram(self._step, streams=self.streams))

    def _for_proof(self, program: TorchProgram) -> TorchProgram:
        program._alone = True
        return program

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """For a proof: one thread until ``close`` if a step is short. The graph runs in turns with it, and threads that wait for
        each other cost more; so does changing their number at every step."""
        if not self._alone:
            yield
            return
        self._alone, before = False, self._torch.get_num_threads()
        self._torch.set_num_threads(1)
        self._before = before
        start = thread_time()
        yield
        if thread_time() - start >= SHORT:
            self._torch.set_num_threads(before)
            self._before = 0

    def new_state(self) -> State:
        """Every row at its initial value."""
        values = [
            self._torch.from_numpy(np.repeat(s.initial_value()[None], self.streams, axis=0))
            for s in self.signature.states
        ]
        return [v.double() if self._double and v.is_floating_point() else v for v in values]

    def step(self, frames: Sequence[Frame], state: State, active: Sequence[int]) -> Sequence[Outputs]:
        """Advance rows ``active``; the others keep their bits."""
        torch = self._torch
        if not active:
            return []
        rows = torch.tensor(list(active))
        inputs = [
            self._frames(t.dtype, [np.asarray(f[t.name]) for f in frames]) for t in self.signature.inputs
        ]
        # Not inference_mode: its tensors may not be written to outside of it, and rows are.
        with torch.no_grad(), self._threads():
            outputs, following = self._call(*inputs, *(s[rows] for s in state))
            # A module may give back a view of what it was given; what we hand out must outlive the next step.
            arrays = [_numbers(y) for y in outputs]
            for whole, part in zip(state, following, strict=True):
                whole[rows] = part
        for array in arrays:
            array.flags.writeable = False
        names = [t.name for t in self.signature.outputs]
        return [{name: y[k] for name, y in zip(names, arrays, strict=True)} for k in range(len(active))]

    def _frames(self, dtype: str, rows: Sequence[Array]) -> Tensor:
        stacked: Tensor = self._torch.from_numpy(np.stack(rows))
        return stacked.view(self._torch.bfloat16) if dtype == "bfloat16" else stacked

    def read_state(self, state: State, row: int) -> dict[str, Array]:
        """A copy of one row."""
        return {s.name: t[row].numpy().copy() for s, t in zip(self.signature.states, state, strict=True)}

    def write_state(self, state: State, row: int, values: Mapping[str, Array]) -> None:
        """Set one row."""
        for spec, tensor in zip(self.signature.states, state, strict=True):
            tensor[row] = self._torch.from_numpy(np.ascontiguousarray(values[spec.name]))

    def close(self) -> None:
        """Let go of the module."""
        self._call = None
        if self._before:
            self._torch.set_num_threads(self._before)
            self._before = 0


def _numbers(tensor: Tensor) -> Array:
    """A copy. Raises EdgeLstmError for a tensor without numbers, which tracing left in what the model keeps where nobody looks."""
    try:
        return np.array(tensor.numpy())
    except RuntimeError as error:
        if type(tensor).__name__ != "FakeTensor":
            raise
        raise EdgeLstmError(
            "the model keeps something from call to call, where neither a graph nor a second stream can have it",
            found="a tensor in its results that the export's tracing had left there",
            expected="what it keeps in an attribute of the module, such as self.state, which --carry-state carries",
        ) from error
