"""What a frame has to be before any stream moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.runtime.finite import all_finite, can_be_infinite, is_finite
from edgelstm.runtime.protocol import Array, Frame

if TYPE_CHECKING:
    from edgelstm.runtime.device_array import DeviceArray
    from edgelstm.runtime.runner import Stream

BadFrame = Literal["error", "skip", "zero", "pass"]


class Input:
    """What a frame is compared with, worked out once."""

    __slots__ = ("dtype", "floating", "kind", "name", "shape")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.shape = spec.frame_shape
        self.dtype = np_dtype(spec.dtype)
        #: As in the Signature: bfloat16 is uint16 for NumPy.
        self.kind = spec.dtype
        self.floating = can_be_infinite(spec.dtype)


class FrameCheck:
    """Compares frames with the Signature, and looks for NaN as ``policy`` says.

    device_frame: the array on the GPU for a frame that lies there (see :class:`edgelstm.runtime.protocol.Program`), if the program
    takes such. only: the input of a model that has one.
    """

    def __init__(
        self, signature: Signature, policy: BadFrame, device_frame: Callable[[Any], DeviceArray | None] | None
    ) -> None:
        if policy not in get_args(BadFrame):
            raise EdgeLstmError("on_bad_frame", found=policy, expected=" or ".join(get_args(BadFrame)))
        self._policy = policy
        self._finite = policy != "pass"
        self._device_frame = device_frame
        self._inputs = tuple(Input(spec) for spec in signature.inputs)
        self.only = self._inputs[0] if len(self._inputs) == 1 else None

    def rows(self, frames: Any, streams: Sequence[Stream]) -> dict[str, Any]:
        """Arrays by input name, [streams, ...] each."""
        given = frames if isinstance(frames, (tuple, list)) else (frames,)
        if not streams or len(given) != len(self._inputs):
            raise EdgeLstmError(
                "one array of all streams' frames",
                found="no stream" if not streams else f"{count_of(len(given), 'array')}",
                expected=f"streams that joined, and an array for each input: {', '.join(i.name for i in self._inputs)}",
            )
        checked: dict[str, Any] = {}
        for spec, array in zip(self._inputs, given, strict=True):
            if array.__class__ is not np.ndarray and isinstance(array, np.ma.MaskedArray):
                array = unmasked(array)
            on_device = (
                None
                if isinstance(array, np.ndarray) or self._device_frame is None
                else self._device_frame(array)
            )
            value: Any = array if on_device is None else on_device
            if not isinstance(array, np.ndarray) and on_device is None:
                raise wrong_frame("frames of all streams", spec, array, streams=len(streams))
            if value.shape != (len(streams), *spec.shape) or value.dtype != spec.dtype:
                raise wrong_frame(
                    "frames of all streams",
                    spec,
                    value,
                    on_device=on_device is not None,
                    streams=len(streams),
                )
            if spec.floating and self._finite:
                if on_device is not None:
                    raise _not_looked_at("frames of all streams", spec, self._policy)
                if not all_finite(value, spec.kind):
                    value = self._finite_rows(value, spec, streams)
            checked[spec.name] = value
        return checked

    def _finite_rows(self, array: Array, spec: Input, streams: Sequence[Stream]) -> Array:
        if self._policy == "zero":
            return np.where(is_finite(array, spec.kind), array, array.dtype.type(0))
        bad = [s.name for s, frame in zip(streams, array, strict=True) if not all_finite(frame, spec.kind)]
        raise EdgeLstmError(
            f"frames of all streams, input {spec.name!r}",
            found=f"NaN or infinity in those of {', '.join(bad)}",
            expected="finite values",
            hint="No stream moved. on_bad_frame='skip' leaves streams out where frames come by name: step({name: frame})",
        )

    def is_good(self, frame: Any, spec: Input) -> bool:
        """Whether ``frame`` is an array that goes in as it is; for one that is not, :meth:`one` finds out why."""
        return self.fits(frame, spec) and (
            not (self._finite and spec.floating) or all_finite(frame, spec.kind)
        )

    @staticmethod
    def fits(frame: Any, spec: Input) -> bool:
        """Whether ``frame`` is an array of the right shape and dtype, whatever it holds."""
        return (
            frame.__class__ is np.ndarray
            and frame.shape == spec.shape
            and (frame.dtype is spec.dtype or frame.dtype == spec.dtype)
        )

    def one(self, stream: Stream, frame: Array | Frame) -> Frame | None:
        """The frame by input name; None when the policy skips it."""
        if not isinstance(frame, Mapping):
            if len(self._inputs) > 1:
                raise EdgeLstmError(
                    f"frame of stream {stream.name!r}",
                    found="one array",
                    expected=f"a mapping with the inputs {', '.join(i.name for i in self._inputs)}",
                )
            frame = {self._inputs[0].name: frame}
        elif len(frame) != len(self._inputs) or any(i.name not in frame for i in self._inputs):
            raise EdgeLstmError(
                f"frame of stream {stream.name!r}",
                found=f"inputs {', '.join(map(str, frame))}",
                expected=", ".join(i.name for i in self._inputs),
            )
        for spec in self._inputs:
            array = frame[spec.name]
            if array.__class__ is not np.ndarray and isinstance(array, np.ma.MaskedArray):
                array = unmasked(array)
                frame = {**frame, spec.name: array}
            if not isinstance(array, np.ndarray) and self._device_frame is not None:
                on_device = self._device_frame(array)
                if on_device is not None:
                    frame = {**frame, spec.name: self._checked_on_device(stream, spec, on_device)}
                    continue
            if not isinstance(array, np.ndarray) or array.shape != spec.shape or array.dtype != spec.dtype:
                raise wrong_frame(_of(stream), spec, array)
            if spec.floating and self._finite and not all_finite(array, spec.kind):
                if self._policy == "skip":
                    return None
                finite = is_finite(array, spec.kind)
                if self._policy == "error":
                    raise EdgeLstmError(
                        f"frame {stream.frames} of stream {stream.name!r}, input {spec.name!r}",
                        found=f"{count_of(int(np.size(array) - finite.sum()), 'value that is', 'values that are')} NaN or infinite",
                        expected="finite values",
                        hint="The state is untouched; on_bad_frame='skip' or 'zero' (--on-bad-frame skip) goes on without stopping",
                    )
                frame = {**frame, spec.name: np.where(finite, array, array.dtype.type(0))}
        return frame

    def _checked_on_device(self, stream: Stream, spec: Input, array: DeviceArray) -> Any:
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise wrong_frame(_of(stream), spec, array, on_device=True)
        if spec.floating and self._finite:
            raise _not_looked_at(_of(stream), spec, self._policy)
        return array


def unmasked(array: Any) -> Array:
    """A masked array with NaN where it is masked: what lies beneath, a fill value such as 1e20, was never measured.

    Raises EdgeLstmError for whole numbers, which have no NaN.
    """
    if not np.ma.is_masked(array):
        return np.asarray(array.data)
    if array.dtype.kind != "f":
        raise EdgeLstmError(
            f"a frame of masked {array.dtype}",
            found=f"{count_of(int(np.ma.getmaskarray(array).sum()), 'masked value')}",
            expected="none, or floating-point numbers, in which they are NaN",
            hint="frame.filled(value) gives them one",
        )
    return np.asarray(array.filled(np.nan))


def wrong_frame(
    what: str, spec: Input, array: Any, *, on_device: bool = False, streams: int | None = None
) -> EdgeLstmError:
    is_array = isinstance(array, np.ndarray) or on_device
    found = f"{array.dtype}{list(array.shape)}" if is_array else type(array).__name__
    hint = None
    wanted = spec.shape if streams is None else (streams, *spec.shape)
    if is_array:
        if array.shape == wanted:
            hint = f"Convert it: frame.astype(np.{spec.dtype})"
        elif streams is None and array.shape == (1, *spec.shape):
            hint = "Leave the stream axis out: frame[0]"
    return EdgeLstmError(
        f"{what}, input {spec.name!r}",
        found=found,
        expected=f"a NumPy array {spec.dtype}{list(wanted)}",
        hint=hint,
    )


def _of(stream: Stream) -> str:
    return f"frame of stream {stream.name!r}"


def _not_looked_at(what: str, spec: Input, policy: str) -> EdgeLstmError:
    return EdgeLstmError(
        f"{what}, input {spec.name!r}, is on the GPU, where it is not looked at for NaN",
        found=f"on_bad_frame={policy!r}",
        expected="on_bad_frame='pass'",
        hint="Open the runner with that, or pass NumPy arrays",
    )
