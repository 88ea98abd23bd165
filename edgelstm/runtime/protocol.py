"""What a backend has to offer so that the Runner can drive it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from edgelstm.graph.signature import Signature

Array = npt.NDArray[Any]
#: One stream's frame, one array per input name, without the stream axis.
Frame = Mapping[str, Array]
#: One stream's outputs by name, without the stream axis; read-only views, valid until the next step.
Outputs = dict[str, Array]


class Program(Protocol):
    """An opened StepModel or Engine on one device, with room for ``streams`` streams (rows).

    Structural: a backend is any class of this shape. The Runner has already checked names, shapes, dtypes and
    values, so a Program need not. An error raised by ``step`` leaves every row's state as it was.

    One on a GPU may also have ``device_frame(value)``: the array on that GPU for a frame, which ``step`` then takes in place of
    NumPy's, or None if ``value`` is no such array.

    And any may have what makes steps cheaper (see :class:`edgelstm.runtime.rows.RowProgram`, which all of ours are):
    ``step_row(frame, state, row)``, a model with one input and one row without lists and dictionaries; ``step_arrays``, ``step`` of a model
    with one input for arrays in place of mappings; ``step_rows(frames, state,
    first, count)``, rows side by side in arrays of all of them; ``step_watched``, ``step_row`` that gives None, and does nothing, for a
    frame with NaN or infinity; ``warm_up(state)``, what the first steps would do before they run.
    """

    signature: Signature
    streams: int

    def new_state(self) -> Any:
        """State of all rows at its initial value; only this Program can read it."""

    def step(self, frames: Sequence[Frame], state: Any, active: Sequence[int]) -> Sequence[Outputs]:
        """Advance rows ``active`` (ascending, distinct) by ``frames`` (same order) in one engine call.

        The state of all other rows keeps its bits. Returns the outputs in the order of ``active``.
        """

    def read_state(self, state: Any, row: int) -> dict[str, Array]:
        """A copy of one row's state by state name, in the dtype the Signature names."""

    def write_state(self, state: Any, row: int, values: Mapping[str, Array]) -> None:
        """Set one row's state; ``values`` holds every state."""

    def close(self) -> None:
        """Free the device; calling it again does nothing."""
