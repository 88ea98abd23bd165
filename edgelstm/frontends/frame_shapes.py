"""What a user says of a frame: an example array, or its shape without the stream axis. Needs no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelstm.errors import EdgeLstmError


def read_shapes(frame: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of one frame, without the stream axis, by input name. Raises EdgeLstmError for what is none."""
    named = frame if isinstance(frame, Mapping) else {"x": frame}
    if not named:
        raise EdgeLstmError("no frame given", expected="at least one input")
    shapes = {}
    for name, value in named.items():
        shape = getattr(value, "shape", value)
        if not is_shape(tuple(shape) if isinstance(shape, tuple | list) else shape):
            raise not_a_shape(f"frame {name!r}", value)
        shapes[str(name)] = tuple(shape)
    return shapes


def is_shape(value: Any) -> bool:
    """Whether ``value`` is a tuple or list of positive integers."""
    return isinstance(value, tuple | list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in value
    )


def not_a_shape(what: str, value: Any) -> EdgeLstmError:
    """The error for a ``value`` that is neither a shape nor an array."""
    return EdgeLstmError(
        f"the shape of {what}",
        found=value if isinstance(value, int | str | tuple | list) else type(value).__name__,
        expected="positive sizes without the stream axis, such as (1, 64, 64), or an example array",
    )
