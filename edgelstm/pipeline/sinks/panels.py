"""An output as a picture: its lead times side by side, its values as grey or in colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelstm.dtypes import CODED, to_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.sinks.colours import COLOURS, NAMES, RAIN_UNIT, Scale, coloured
from edgelstm.pipeline.sources.source import Array

__all__ = [
    "COLOURS",
    "INPUT",
    "Panels",
    "View",
    "as_float",
    "as_maps",
    "coloured",
    "image_outputs",
    "is_channels_last",
    "size_of",
]

#: Under this name a sink is given the input of the model, float32, in the units of the outputs that are frames.
INPUT = "@input"


@dataclass(frozen=True)
class View:
    """What a picture shows.

    output: which output; None for every image (PNG) or the first (MP4).
    channel: which channel; None for RGB when there are three, else the first.
    lead: which lead time of a forecast [K, C, H, W], counted from 1 as scores do: so many frames ahead; None for all K side
        by side.
    range: the values that are black and white; None for 0 and 1 when the first frame lies in there or nearly (0 and 255 for
        uint8), else its minimum and maximum. The same for all frames, so brightness can be compared.
    colours: how one channel is coloured, one of ``colours.NAMES``; None for grey. ``rain`` has classes of its own in mm/h.
    beside: the input stands left of the output.
    caption: what is shown, when and in which units stands in the picture, with a bar of the colours.
    truth: of a forecast, what came then stands beside or below it; with captions.
    """

    output: str | None = None
    channel: int | None = None
    lead: int | None = None
    range: tuple[float, float] | None = None
    colours: str | None = None
    beside: bool = False
    caption: bool = False
    truth: bool = False

    def __post_init__(self) -> None:
        if self.colours not in (None, *NAMES):
            raise EdgeLstmError("colours", found=self.colours, expected=" or ".join(NAMES))
        if self.colours == "rain" and self.range is not None:
            raise EdgeLstmError(
                "a range for the colours of rain",
                found=self.range,
                expected="none: its classes are fixed, in mm/h",
            )

    @property
    def input(self) -> bool:
        """Whether the model's input is wanted: for the picture, or for the scale that both have."""
        return self.beside or self.caption or self.truth

    @property
    def physical(self) -> bool:
        """Whether values are shown in physical units, where there are any."""
        return self.caption or self.truth or self.colours == "rain"


class Panels:
    """Pictures uint8 [H, W] or [H, W, 3] of one output under a View. unit: of its values, if known."""

    def __init__(self, spec: TensorSpec, view: View, unit: str | None = None) -> None:
        self.spec, self.unit = spec, unit
        leads, channels, _, _ = _leads_channels_rows_columns(spec.frame_shape)
        for option, value, first, size in (
            ("channel", view.channel, 0, channels),
            ("lead", view.lead, 1, leads),
        ):
            if value is not None and not first <= value < first + size:
                raise EdgeLstmError(
                    f"{option} of output {spec.name!r}",
                    found=value,
                    expected=f"{first} to {first + size - 1}",
                )
        if view.range is not None and not view.range[0] < view.range[1]:
            raise EdgeLstmError("range of values to show", found=view.range, expected="low below high")
        if view.colours == "rain" and unit != RAIN_UNIT:
            raise EdgeLstmError(
                f"the colours of rain for output {spec.name!r}",
                found=f"values in {unit}" if unit else "values of no known unit",
                expected=f"{RAIN_UNIT}: radar frames scaled to it, and an output like them",
                hint="Others, such as blue, show any values",
            )
        #: Which of the lead times are shown, from 0.
        self.leads = tuple(range(leads)) if view.lead is None else (view.lead - 1,)
        self.colour = channels == 3 and view.channel is None
        channel = view.channel or 0
        self._channels = slice(None) if self.colour else slice(channel, channel + 1)
        self._range = view.range
        self._colours = view.colours
        self._input_range: tuple[float, float] | None = None

    @property
    def scale(self) -> Scale:
        """From values to colours; known once an output was shown."""
        return Scale(self._colours, *(self._range or (0.0, 1.0)))

    def cells(self, array: Array, frame: Array | None = None) -> list[Array]:
        """A picture of each lead time shown. frame: the input, which is on the same scale where it is alike."""
        x = as_float(array, self.spec.dtype)
        if is_channels_last(x.shape):
            x = x.transpose(2, 0, 1)
        shape = _leads_channels_rows_columns(self.spec.frame_shape)
        x = x.reshape(shape)[list(self.leads), self._channels]
        if self._range is None:
            both = [x] if frame is None or not self.like(frame.shape) else [x, self._channels_of(frame)]
            self._range = _first_range(np.concatenate([part.ravel() for part in both]), self.spec.dtype)
        return [self._picture(one, self.scale) for one in x]

    def picture(self, array: Array, frame: Array | None = None) -> Array:
        """All of them side by side."""
        return np.concatenate(self.cells(array, frame), 1)

    def like(self, shape: tuple[int, ...]) -> bool:
        """Whether a frame of this shape is what each lead time (or the whole output) is."""
        return shape in (self.spec.frame_shape, self.spec.frame_shape[1:])

    def frame(self, values: Array) -> Array:
        """A frame of the shape of one lead time, in the units of the output, on its scale. Call it after the output."""
        return self._picture(self._channels_of(values), self.scale)

    def beside(self, raw: Array | None, values: tuple[float, float] | None, frame: Array | None) -> Array:
        """The input as a picture in these colours: an RGB source as it came, else what the model took; call it after the output.

        raw: of the source, with its ``values`` of black and white. frame: what the model took, [C, H, W] or [H, W].
        """
        if raw is not None and raw.ndim == 3 and raw.shape[2] == 3 and values is not None:
            low, high = values
            return np.rint(np.clip((raw - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        if frame is not None and self.like(frame.shape):
            return self.frame(frame)
        if frame is not None and is_channels_last(frame.shape):
            frame = frame.transpose(2, 0, 1)
        image = None if frame is None else frame[0] if frame.ndim == 3 else frame
        if image is None or image.ndim != 2:
            raise EdgeLstmError(
                "the input beside the output",
                found="no image" if frame is None else list(frame.shape),
                expected="a source or an input of images",
            )
        if self._input_range is None:
            self._input_range = _first_range(image, "float32")
        colours = None if self._colours == "rain" else self._colours  # the input is in no unit of the output
        return Scale(colours, *self._input_range)(image)

    def _channels_of(self, frame: Array) -> Array:
        """[C, H, W] of a frame: of one channel that, else those that are shown."""
        if is_channels_last(frame.shape):
            frame = frame.transpose(2, 0, 1)
        x = as_float(frame.reshape(_leads_channels_rows_columns(frame.shape))[0], "float32")
        return x if len(x) == 1 else x[self._channels]

    def _picture(self, x: Array, scale: Scale) -> Array:
        """[C, H, W] with one channel or three."""
        if len(x) == 3 and self.colour:
            coloured: Array = scale.grey(x).transpose(1, 2, 0)
            return coloured
        return scale(x[0])


def image_outputs(signature: Signature, view: View) -> list[TensorSpec]:
    """The outputs that are images, or the one that ``view`` names; EdgeLstmError when there is none."""
    specs = signature.outputs if view.output is None else (signature.output(view.output),)
    images = [spec for spec in specs if _is_image(spec.frame_shape)]
    if not images:
        raise EdgeLstmError(
            "no output to make pictures of",
            found=", ".join(f"{s.name} {list(s.frame_shape)}" for s in specs) or "no outputs",
            expected="[H, W], [C, H, W], [H, W, C] or [K, C, H, W]",
            hint="Write to .npz or .jsonl",
        )
    return images


def as_float(array: Array, dtype: str) -> Array:
    """``array`` as float32; float64 stays, whole numbers that float32 would round become it, raw bits (bfloat16, float8) are decoded."""
    if dtype in CODED:
        return to_float32(array, dtype)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2:
        return array.astype(np.float64)
    return array if array.dtype == np.float64 else array.astype(np.float32)


def as_maps(array: Array, spec: TensorSpec) -> Array:
    """float32 [bands, H, W] of an image output: lead times, else channels, wherever the model has them."""
    values = as_float(array, spec.dtype).astype(np.float32).reshape(spec.frame_shape)
    if is_channels_last(spec.frame_shape):
        values = values.transpose(2, 0, 1)
    return values.reshape(-1, *size_of(spec))


def size_of(spec: TensorSpec) -> tuple[int, int]:
    """Rows and columns of an image output."""
    rows, columns = _leads_channels_rows_columns(spec.frame_shape)[2:]
    return rows, columns


def _is_image(shape: tuple[int, ...]) -> bool:
    return 2 <= len(shape) <= 4 and min(shape[:2] if is_channels_last(shape) else shape[-2:]) > 1


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Grey or RGB behind height and width, as Keras has it."""
    return len(shape) == 3 and shape[2] in (1, 3) and shape[0] > 4


def _leads_channels_rows_columns(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if is_channels_last(shape):
        shape = (shape[2], shape[0], shape[1])
    leads, channels, rows, columns = (1,) * (4 - len(shape)) + shape
    return leads, channels, rows, columns


def _first_range(x: Array, dtype: str) -> tuple[float, float]:
    if dtype == "uint8":
        return 0.0, 255.0
    finite = x[np.isfinite(x)]
    if finite.size == 0 or finite.min() == finite.max():
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    # A forecast of brightness runs a little over both ends.
    if (low >= 0 and high <= 1) or (low >= -0.1 and 0.5 <= high <= 1.1):
        return 0.0, 1.0
    return low, high
