"""From raw frames to what one step of a model takes: preprocessing of every input, and windows of frames."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of, some
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.operations import Array
from edgelstm.pipeline.optext import format_ops
from edgelstm.pipeline.preprocess import Preprocess
from edgelstm.pipeline.sources.source import Frame, Source
from edgelstm.pipeline.wording import Say, as_option, of_input

log = logging.getLogger(__name__)

Op = Mapping[str, Any]
OnGap = Literal["hold", "reset", "error"]


class Inputs:
    """From raw frames to the arrays of all inputs of a model, by the preprocessing that the model declares.

    >>> inputs = edgelstm.Inputs(runner.signature)
    >>> for picture in camera:  # raw: uint8 [480, 640, 3]
    ...     y = stream.step(inputs(picture))["y"]

    overrides: operations by input name that take the place of the declared ones. A raw frame is an array for a model with
    one input, a mapping by input name for every model, or a :class:`Frame` of a source.

    hop: for models whose one step takes T frames together, [T, *frame]: a window every ``hop`` frames, 1 for one that
    slides frame by frame, T for windows end to end. A window exported from a step (``Signature.window``) has its hop: T,
    and no other where a state is carried, for overlapping frames would go into it twice. :meth:`push` gathers the
    frames of a window; :meth:`steps` does so for a whole source.

    on_gap: of frames that say that something is missing before them: ``hold`` goes on, ``reset`` begins a new window (who
    streams resets the state), ``error`` raises. say: how hints name what the user may set. Raises EdgeLstmError for a hop or operations that don't fit the model.
    """

    def __init__(
        self,
        signature: Signature,
        overrides: Mapping[str, Sequence[Op]] | None = None,
        *,
        hop: int | None = None,
        on_gap: OnGap = "hold",
        say: Say = as_option,
    ) -> None:
        if on_gap not in get_args(OnGap):
            raise EdgeLstmError("on_gap", found=on_gap, expected=" or ".join(get_args(OnGap)))
        self.ops = {**signature.preprocessing, **(overrides or {})}
        for name in self.ops:
            signature.input(name)
        #: Frames that one step takes; None when it takes one as it is.
        self.window = _window(signature, hop)
        self.hop = hop or self.window
        #: Whether the model's step itself takes a window, which a hop cuts: no exported one.
        self.sliding = self.window is not None and signature.window is None
        self._on_gap = on_gap
        several = len(signature.inputs) > 1
        says = {t.name: of_input(say, t.name) if several else say for t in signature.inputs}
        #: What the model takes.
        self.specs = signature.inputs
        self._preprocess = {
            spec.name: Preprocess(
                self.ops.get(spec.name, ()), single_frame(spec, self.window), says[spec.name]
            )
            for spec in signature.inputs
        }
        self._only = signature.inputs[0].name if len(signature.inputs) == 1 else None
        #: What the model declares and nobody replaced: to be held against the depth of the frames.
        self._declared = {
            name: ops for name, ops in signature.preprocessing.items() if name not in (overrides or {})
        }
        self._says = says
        self._checked: tuple[float, float] | None = None
        self._size: tuple[int, ...] | None = None
        self._windows: dict[str | None, _Window] = {}
        #: Frames of streams that ended, in no step.
        self._short = 0

    def __repr__(self) -> str:
        each = "" if self.window is None else f", {count_of(self.window, 'frame')} a step, hop {self.hop}"
        return f"Inputs({some(self._preprocess)}{each})"

    def __call__(self, frame: Frame | Array | Mapping[str, Array]) -> dict[str, Array]:
        """One raw frame's arrays by input name, each of its ``frame_shape`` (for a window: of one of its frames)."""
        if isinstance(frame, Frame):
            if frame.bad is not None:
                raise frame.bad
            name, data = self._only, frame.data
            if name is not None and data.__class__ is np.ndarray and self._preprocess[name].takes(data):  # type: ignore[arg-type]
                return {name: data}  # type: ignore[dict-item]
            if frame.values is not None and frame.values != self._checked:
                for name, ops in self._declared.items():
                    check_scale(name, ops, frame.values, self._says[name])
                self._checked = frame.values
            self._check_size(frame)
            made = self._ready(frame.data)
            if frame.data.__class__ is np.ndarray:
                self._size = frame.data.shape  # of the first that could be taken
            return made
        return self._ready(frame)

    def _ready(self, frame: Array | Mapping[str, Array]) -> dict[str, Array]:
        if frame.__class__ is np.ndarray or not isinstance(frame, Mapping):
            if len(self._preprocess) > 1:
                raise EdgeLstmError(
                    f"the model has {count_of(len(self._preprocess), 'input')} and the source gives one array a frame",
                    expected=f"an .npz with arrays {', '.join(self._preprocess)}",
                )
            return {name: preprocess(frame) for name, preprocess in self._preprocess.items()}
        missing = sorted(set(self._preprocess) - set(frame))
        if missing:
            raise EdgeLstmError(
                f"the source lacks input {', '.join(missing)}",
                found=f"arrays {', '.join(sorted(frame))}",
                expected=f"one for each of {', '.join(self._preprocess)}",
            )
        return {name: preprocess(frame[name]) for name, preprocess in self._preprocess.items()}

    def _check_size(self, frame: Frame) -> None:
        """A camera may change its resolution. What is cut out of the picture by pixels would be another part of the scene."""
        if isinstance(frame.data, Mapping) or frame.data.shape == self._size:
            return
        if self._size is not None:
            for name in self._preprocess:
                shaping = [
                    op["op"] for op in self.ops.get(name, ()) if op["op"] in ("crop", "average", "resize")
                ]
                # Without any, the input's shape decides.
                if shaping and shaping[0] != "resize":
                    raise EdgeLstmError(
                        f"frame {frame.index} ({frame.name}) for input {name!r}",
                        found=f"{list(frame.data.shape)}, and {list(self._size)} before",
                        expected="one size, or preprocessing in which 'resize' comes before everything else that shapes a frame",
                    )

    def push(
        self,
        frame: Frame | Array | Mapping[str, Array],
        stream: str | None = None,
        ready: dict[str, Array] | None = None,
    ) -> dict[str, Array] | None:
        """What the next step takes, or None until a window is full. Each ``stream`` has a window of its own. ready: what calling gave for
        this frame, where that was done."""
        if isinstance(frame, Frame) and frame.gap is not None:
            if self._on_gap == "error":
                raise EdgeLstmError(
                    f"frame {frame.index} ({frame.name})",
                    found=frame.gap,
                    expected="frames without a gap",
                    hint="--on-gap reset begins anew behind a gap, hold goes on",
                )
            if self._on_gap == "reset":
                self.forget(stream)
        ready = self(frame) if ready is None else ready
        if self.window is None:
            return ready
        assert self.hop is not None
        window = self._windows.setdefault(stream, _Window(self.window))
        window.frames.append(ready)
        window.due -= 1
        window.new += 1
        if isinstance(frame, Frame) and frame.last:
            del self._windows[stream]
            self._short += window.new if window.due else 0
        if window.due:
            return None
        window.due, window.new = self.hop, 0
        return {name: np.stack([f[name] for f in window.frames]) for name in ready}

    def calls(self, frames: int) -> int:
        """How many steps of the model so many frames of one stream make."""
        if self.window is None:
            return frames
        return max(0, (frames - self.window) // (self.hop or self.window) + 1)

    def forget(self, stream: str | None = None) -> None:
        """Drop the frames gathered for a window of ``stream``."""
        self._windows.pop(stream, None)

    def steps(
        self, source: Iterable[Frame], *, quiet: bool = False
    ) -> Iterator[tuple[Frame, dict[str, Array]]]:
        """(last frame of the step, inputs) for every step; frames short of a last window are left out, with a warning
        unless ``quiet``.

        Where frames are missing somewhere in the step, the frame's ``gap`` says so.
        """
        gaps: dict[str | None, str] = {}
        for frame in source:
            if frame.gap is not None:
                gaps[frame.stream] = frame.gap
            ready = self.push(frame, frame.stream)
            if ready is not None:
                gap = gaps.pop(frame.stream, None)
                yield (frame if gap == frame.gap else replace(frame, gap=gap)), ready
        short = self._short + sum(window.new for window in self._windows.values())
        self._short = 0
        if short and not quiet:
            log.warning(
                "left out at the end: %s, too few for a window of %d", count_of(short, "frame"), self.window
            )
        self._windows.clear()


def cut(
    source: Source,
    signature: Signature,
    overrides: Mapping[str, Sequence[Op]] | None = None,
    hop: int | None = None,
) -> tuple[Source, int | None, tuple[int, int] | None]:
    """(source, hop, (rate, hop in samples)): sound in the frames that the model takes, every other source as it is.

    What a frame of sound is, the operation ``samples`` says; without it, ``hop`` samples at a time, as many as the input is
    long, at the file's rate. The hop that is left is for :class:`Inputs`.
    """
    if not source.is_sound:
        return source, hop, None
    spec = signature.inputs[0]
    ops = {**signature.preprocessing, **(overrides or {})}.get(spec.name, ())
    declared = next((op for op in ops if op.get("op") == "samples"), None)
    if declared is not None:
        rate, step = declared["rate"], hop or declared["hop"]
        return source.reframed(declared["length"], step, rate), None, (rate, step)
    if hop is None:
        length = spec.frame_shape[-1] if spec.frame_shape else 1
        raise EdgeLstmError(
            f"{source.description}: what a frame of it is",
            expected=f"preprocessing that says so, such as 'samples={length},{length},16000', or a hop: the "
            "samples from frame to frame",
        )
    made = source.reframed(spec.frame_shape[-1], hop, None)
    return made, None, (round((made.fps or 0) * hop), hop)


def of_one_stream(source: Iterable[Frame]) -> Iterator[Frame]:
    """The frames of a source that holds one stream; EdgeLstmError where another's frame comes, whose state is another."""
    first: str | None = None
    for k, frame in enumerate(source):
        first = frame.stream if not k else first
        if frame.stream != first:
            raise EdgeLstmError(
                "a source of several streams, where one state is carried",
                found=f"{first!r}, then {frame.stream!r}",
                expected="one stream",
                hint=f"Choose it: FILE.csv:key=...:keys={first}",
            )
        yield frame


class _Window:
    """The last frames of a stream; ``due``: frames until the next step; ``new``: frames in no step so far."""

    def __init__(self, size: int) -> None:
        self.frames: deque[dict[str, Array]] = deque(maxlen=size)
        self.due = size
        self.new = 0


def _window(signature: Signature, hop: int | None) -> int | None:
    """How many frames a step takes."""
    if hop is not None and hop < 1:
        raise EdgeLstmError("hop", found=hop, expected="at least 1 frame")
    if signature.window is not None:
        if hop not in (None, signature.window) and signature.states:
            raise EdgeLstmError(
                f"a hop of {hop} for a window of {count_of(signature.window, 'frame')} that carries its state",
                expected=f"{signature.window}",
                hint="Frames that overlap would go into the state twice. Stream the step graph instead: it gives an "
                "output for every frame",
            )
        return signature.window
    if hop is None:
        return None
    sizes = {t.name: t.frame_shape[0] if len(t.frame_shape) > 1 else 1 for t in signature.inputs}
    size = next(iter(sizes.values()))
    if len(set(sizes.values())) > 1 or size == 1:
        raise EdgeLstmError(
            f"a hop of {hop}",
            found=", ".join(f"input {t.name} {list(t.frame_shape)}" for t in signature.inputs),
            expected="inputs [T, *frame] with one T above 1",
            hint="Leave the hop out: one step of this model takes one frame",
        )
    return size


def single_frame(spec: TensorSpec, window: int | None) -> TensorSpec:
    """What one of the frames of a window looks like; ``spec`` itself without a window."""
    return spec if window is None else replace(spec, shape=(spec.shape[0], *spec.shape[2:]))


#: White of the depths that models are trained on.
_WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)


def check_scale(name: str, ops: Sequence[Op], values: tuple[float, float], say: Say = as_option) -> None:
    """Raise EdgeLstmError when declared operations bring another depth than that of ``values`` to 1."""
    white = values[1]
    for place, op in enumerate(ops):
        if op["op"] in ("normalize", "log1p"):
            return
        if op["op"] != "scale":
            continue
        factor, offset = op["factor"], op.get("offset", 0.0)
        meant = [w for w in _WHITES if abs(factor * w + offset - 1) < 0.02]
        if not meant or abs(factor * white + offset - 1) < 0.02:
            return
        right = [dict(other) for other in ops]
        right[place]["factor"] = float(f"{factor * meant[0] / white:.9g}")
        for before in right[:place]:
            if before["op"] == "clip":
                before |= {key: before[key] * white / meant[0] for key in ("min", "max")}
        raise EdgeLstmError(
            f"frames for input {name!r}",
            found=f"values {values[0]:g} to {white:g}",
            expected=f"0 to {meant[0]:g}, which the model's 'scale={factor:g}' brings to 1",
            hint=f"Say {say('preprocess', format_ops(right))}",
        )
