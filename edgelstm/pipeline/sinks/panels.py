"""An output as a picture: its lead times side by side, its values as grey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.sources.source import Array

#: Under this name a sink is given the input of the model, float32, in the units of the outputs that are frames.
INPUT = "@input"
#: Colours of black, of what lies evenly between, and of white.
COLOURS = {
    "blue": ((11, 14, 19), (18, 58, 99), (47, 134, 198), (159, 212, 238), (255, 255, 255)),
    "heat": ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)),
}


@dataclass(frozen=True)
class View:
    """What a picture shows.

    output: which output; None for every image (PNG) or the first (MP4).
    channel: which channel; None for RGB when there are three, else the first.
    lead: which lead time of a forecast [K, C, H, W], from 0; None for all K side by side.
    range: the values that are black and white; None for 0 and 1 when the first frame lies in there (0 and 255 for
        uint8), else its minimum and maximum. The same for all frames, so brightness can be compared.
    colours: how one channel is coloured, a name of ``COLOURS``; None for grey. beside: the input stands left of the output
        (MP4).
    """

    output: str | None = None
    channel: int | None = None
    lead: int | None = None
    range: tuple[float, float] | None = None
    colours: str | None = None
    beside: bool = False

    def __post_init__(self) -> None:
        if self.colours not in (None, *COLOURS):
            raise EdgeLstmError("colours", found=self.colours, expected=" or ".join(COLOURS))


class Panels:
    """``panels(array) -> uint8 [H, W * K] or [H, W * K, 3]`` for one output under a View."""

    def __init__(self, spec: TensorSpec, view: View) -> None:
        self.spec = spec
        leads, channels, _, _ = _leads_channels_rows_columns(spec)
        for option, value, size in (("channel", view.channel, channels), ("lead", view.lead, leads)):
            if value is not None and not 0 <= value < size:
                raise EdgeLstmError(
                    f"{option} of output {spec.name!r}", found=value, expected=f"0 to {size - 1}"
                )
        if view.range is not None and not view.range[0] < view.range[1]:
            raise EdgeLstmError("range of values to show", found=view.range, expected="low below high")
        self._leads = slice(None) if view.lead is None else slice(view.lead, view.lead + 1)
        colour = channels == 3 and view.channel is None
        channel = view.channel or 0
        self._channels = slice(None) if colour else slice(channel, channel + 1)
        self._range = view.range
        self._colours = view.colours
        self._input_range: tuple[float, float] | None = None

    def __call__(self, array: Array) -> Array:
        x = as_float(array, self.spec.dtype)
        if _channels_last(x.shape):
            x = x.transpose(2, 0, 1)
        x = x.reshape(_leads_channels_rows_columns(self.spec))[self._leads, self._channels]
        if self._range is None:
            self._range = _first_range(x, self.spec.dtype)
        low, high = self._range
        grey = np.clip((np.nan_to_num(x, nan=low) - low) / (high - low), 0, 1) * 255
        # [K, C, H, W] to [H, K, W, C]: the K panels stand side by side.
        side_by_side: Array = np.rint(grey).astype(np.uint8).transpose(2, 0, 3, 1)
        height, leads, width, channels = side_by_side.shape
        if channels == 3:
            return side_by_side.reshape(height, leads * width, channels)
        return coloured(side_by_side.reshape(height, leads * width), self._colours)

    def beside(self, raw: Array | None, values: tuple[float, float] | None, frame: Array | None) -> Array:
        """The input as a picture in these colours: an RGB source as it came, else what the model took; call it after the output.

        raw: of the source, with its ``values`` of black and white. frame: what the model took, [C, H, W] or [H, W].
        """
        if raw is not None and raw.ndim == 3 and raw.shape[2] == 3 and values is not None:
            low, high = values
            return np.rint(np.clip((raw - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        image = None if frame is None else frame[0] if frame.ndim == 3 else frame
        if image is None or image.ndim != 2:
            raise EdgeLstmError(
                "the input beside the output",
                found="no image" if frame is None else list(frame.shape),
                expected="a source or an input of images",
            )
        if self._input_range is None:
            same = frame is not None and _like(frame.shape, self.spec.frame_shape) and self._range is not None
            self._input_range = self._range if same else _first_range(image, "float32")
        assert self._input_range is not None
        low, high = self._input_range
        grey = np.clip((np.nan_to_num(image, nan=low) - low) / (high - low), 0, 1) * 255
        return coloured(np.rint(grey).astype(np.uint8), self._colours)


def coloured(grey: Array, colours: str | None) -> Array:
    """RGB [H, W, 3] of grey uint8 [H, W], or itself without colours."""
    if colours is None:
        return grey
    stops = np.array(COLOURS[colours], np.float64)
    places = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), places, stops[:, c]) for c in range(3)], 1)
    picture: Array = np.rint(table).astype(np.uint8)[grey]
    return picture


def _like(frame: tuple[int, ...], output: tuple[int, ...]) -> bool:
    return frame in (output, output[1:])


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
    """``array`` as float32 (float64 stays); bfloat16 is decoded from its 16 raw bits."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _is_image(shape: tuple[int, ...]) -> bool:
    return 2 <= len(shape) <= 4 and min(shape[:2] if _channels_last(shape) else shape[-2:]) > 1


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Grey or RGB behind height and width, as Keras has it."""
    return len(shape) == 3 and shape[2] in (1, 3) and shape[0] > 4


def _leads_channels_rows_columns(spec: TensorSpec) -> tuple[int, int, int, int]:
    shape = spec.frame_shape
    if _channels_last(shape):
        shape = (shape[2], shape[0], shape[1])
    leads, channels, rows, columns = (1,) * (4 - len(shape)) + shape
    return leads, channels, rows, columns


def _first_range(x: Array, dtype: str) -> tuple[float, float]:
    if dtype == "uint8":
        return 0.0, 255.0
    finite = x[np.isfinite(x)]
    if finite.size == 0 or (finite.min() >= 0 and finite.max() <= 1) or finite.min() == finite.max():
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())
