"""What a user says of a frame or a state: an example array, or a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.signature import MAX_ELEMENTS


def read_frames(frame: Any) -> dict[str, Any]:
    """Examples of one frame, without the stream axis, by input name."""
    named = frame if isinstance(frame, Mapping) else {"x": frame}
    if not named:
        raise EdgeLstmError("no frame given", expected="at least one input")
    return {str(name): example(value, f"frame {name!r}") for name, value in named.items()}


def example(value: Any, what: str) -> Any:
    """A tensor: ``value`` itself if it is an array, zeros if it is a shape."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    if is_shape(value):
        if math.prod(value) > MAX_ELEMENTS:
            raise EdgeLstmError(
                f"{what} is too large", found=list(value), expected=f"at most {MAX_ELEMENTS} elements"
            )
        return torch.zeros(tuple(value))
    raise EdgeLstmError(
        f"the shape of {what}",
        found=value if isinstance(value, int | str | tuple | list) else type(value).__name__,
        expected="positive sizes without the stream axis, such as (1, 64, 64), or an example array",
    )


def is_shape(value: Any) -> bool:
    """Whether ``value`` is a tuple or list of positive integers."""
    return isinstance(value, tuple | list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in value
    )
