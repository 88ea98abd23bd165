"""What a user says of a frame or a state, as tensors: an example array, or zeros of a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.frame_shapes import is_shape, not_a_shape
from edgelstm.frontends.torch.package import import_torch
from edgelstm.graph.signature import MAX_ELEMENTS


def read_frames(frame: Any) -> dict[str, Any]:
    """Examples of one frame, without the stream axis, by input name."""
    named = frame if isinstance(frame, Mapping) else {"x": frame}
    if not named:
        raise EdgeLstmError("no frame given", expected="at least one input")
    return {str(name): example(value, f"frame {name!r}") for name, value in named.items()}


def example(value: Any, what: str) -> Any:
    """A tensor: ``value`` itself if it is an array, zeros if it is a shape."""
    import numpy as np

    torch = import_torch()

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        # Not ascontiguousarray, which gives a single number an axis.
        return torch.from_numpy(np.array(value, order="C"))
    if is_shape(value):
        if math.prod(value) > MAX_ELEMENTS:
            raise EdgeLstmError(
                f"{what} is too large", found=list(value), expected=f"at most {MAX_ELEMENTS} elements"
            )
        return torch.zeros(tuple(value))
    raise not_a_shape(what, value)
