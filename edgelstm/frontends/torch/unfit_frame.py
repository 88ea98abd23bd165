"""A frame that does not fit a module: what its first layer takes, and a frame that works, tried before it is named.

A module that raises for a frame of the wrong shape is seen from outside as no step at all. So shapes that its layers suggest are
tried in its place: where one is a step, the frame was wrong and not the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import nn

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.frame_shapes import is_shape
from edgelstm.graph.signature import MAX_ELEMENTS

Shape = tuple[int, ...]
#: Shapes that are tried: each is a module run a few times.
TRIED = 12
#: What is in a message where the module itself raised.
RAISED = " raised "
#: Layers by what they call the size of their input, and the axes of space they look along.
_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def explained(
    module: Any, frame: Any, states: Any, error: EdgeLstmError, attempt: Callable[[Any], Any]
) -> EdgeLstmError:
    """``error``, or a word on the frame where another one works. ``attempt`` opens the module with one, or raises."""
    given = _only_shape(frame)
    if given is None or RAISED not in str(error) or not isinstance(module, nn.Module):
        return error
    layers = list(_layers(module))
    if not layers:
        return error
    shapes = (s for s in dict.fromkeys(_shapes(given, layers, states)) if s != given)
    for shape in islice(shapes, TRIED):
        if min(shape, default=1) < 1 or math.prod(shape) > MAX_ELEMENTS:
            continue
        name = next(iter(frame)) if isinstance(frame, Mapping) else None
        more = None
        try:
            attempt(shape if name is None else {name: shape})
        except EdgeLstmError as other:
            if RAISED in str(other) or "not step-shaped" in str(other):
                continue
            more = other  # it fits, and a word on something else is missing
        except Exception:
            continue
        option = ("" if name is None else f"{name}:") + ",".join(map(str, shape))
        hint = f"--frame {option} (frame={shape}) works: it was tried"
        if more is not None:
            hint = f"--frame {option} (frame={shape}) fits; then: {more}"
        path, layer = layers[0]
        return EdgeLstmError(
            f"a frame of shape {list(given)} does not fit {type(module).__name__}",
            found=_said(error),
            expected=f"what its first layer takes: {path + ', ' if path else ''}{_takes(layer)}",
            hint=hint,
        )
    return error


def _said(error: EdgeLstmError) -> str:
    """What the module raised."""
    found = str(error.found or error)
    at = found.find(RAISED.strip() + " ")
    return f"that it {found[at:]}" if at >= 0 else found


def _only_shape(frame: Any) -> Shape | None:
    if isinstance(frame, Mapping):
        frame = next(iter(frame.values())) if len(frame) == 1 else None
    return tuple(frame) if frame is not None and is_shape(frame) else None


def _layers(module: Any) -> Iterator[tuple[str, Any]]:
    """Those that say how large their input is, in the order in which they were made."""
    for path, layer in module.named_modules():
        if isinstance(layer, (*_CONVOLUTIONS, nn.Linear, nn.RNNBase, nn.RNNCellBase)):
            yield path, layer


def _size(layer: Any) -> int:
    return int(getattr(layer, "in_channels", None) or getattr(layer, "in_features", None) or layer.input_size)


def _rank(layer: nn.Module) -> int:
    return next((rank for kind, rank in _CONVOLUTIONS.items() if isinstance(layer, kind)), 0)


def _takes(layer: nn.Module) -> str:
    size, kind, rank = _size(layer), type(layer).__name__, _rank(layer)
    if rank:
        axes = ", ".join(("D", "H", "W")[-rank:] if rank > 1 else "L")
        return (
            f"{kind} of {size} channels, [{size}, {axes}] (of frame and state together, if both go into it)"
        )
    return f"{kind} of {size} values, [{size}]"


def _shapes(given: Shape, layers: list[tuple[str, Any]], states: Any) -> Iterator[Shape]:
    """Frames that the first layers suggest, those most like ``given`` first."""
    for place, (_, layer) in enumerate(layers[:3]):
        size, rank = _size(layer), _rank(layer)
        if not rank:
            if given[-1:] == (size,):
                yield (1, size)  # code that takes one frame of a sequence only, x[B, 1, D]
                yield (size,)
            yield (*given[:-1], size)
            yield (size,)
            continue
        channels = [size]
        out = int(getattr(layer, "out_channels", 0))
        # A ConvLSTM's convolution reads frame and state together, and gives 4 gates (a ConvGRU's 3, or 2 and 1).
        channels += [size - out // gates for gates in (4, 3, 2, 1) if size > out // gates > 0]
        spaces = list(_spaces(given, channels, rank, states))
        follower = next((after for _, after in layers[place + 1 :] if not _rank(after)), None)
        if follower is not None and out and _size(follower) % out == 0:
            side = round((_size(follower) // out) ** (1 / rank))
            spaces += [(side,) * rank]
        for space in spaces:
            for count in channels:
                yield (count, *space)


def _spaces(given: Shape, channels: list[int], rank: int, states: Any) -> Iterator[Shape]:
    """Sizes along the axes of space."""
    if len(given) == rank + 1 and given[-1] in (*channels, 1, 3, 4) and given[0] not in channels:
        yield given[:-1]  # the channels stand last
    if len(given) == rank > 1 and given[0] in channels:
        yield (given[-1],) * rank  # an axis of space was forgotten
    if len(given) >= rank:
        yield given[-rank:]
    elif given:
        yield (*given[1:], *(given[-1],) * (rank - len(given) + 1))[:rank]
    for state in states.values() if isinstance(states, Mapping) else ():
        shape = tuple(state) if is_shape(state) else tuple(getattr(state, "shape", ()))
        if len(shape) == rank + 1:
            yield shape[1:]
