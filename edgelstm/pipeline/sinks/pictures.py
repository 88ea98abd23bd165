"""Outputs as pictures: a folder of PNG files, or a video."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import atomic_path, one_file
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks.captions import Captioned, resized
from edgelstm.pipeline.sinks.colours import rgb
from edgelstm.pipeline.sinks.missing import Missing
from edgelstm.pipeline.sinks.panels import INPUT, Panels, View, image_outputs
from edgelstm.pipeline.sinks.room import check_room
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write

#: Frames a second of a video whose source does not know, or gives less than one (radar: one in five minutes).
DEFAULT_FPS = 10.0
#: Smaller pictures are enlarged, by a whole factor, until their shorter side has so many pixels.
SMALLEST_SIDE = 128
#: Pictures that an encoder holds back, and bytes for each in the index at the end of a video.
HELD_BACK, INDEX = 64, 64


class Plain:
    """Pixels alone: the output, and where it is asked for the input left of it."""

    def __init__(self, panels: Panels, view: View) -> None:
        self._panels, self._view = panels, view

    def add(self, frame: Frame, outputs: Mapping[str, Array]) -> Iterator[tuple[Frame, Array]]:
        """One picture a frame."""
        found = outputs.get(INPUT)
        picture = self._panels.picture(outputs[self._panels.spec.name], found)
        if self._view.beside:
            raw = frame.data if isinstance(frame.data, np.ndarray) else None
            left = self._panels.beside(raw, frame.values, found)
            picture = _side_by_side(left, enlarged(picture))
        yield frame, picture

    def rest(self) -> Iterator[tuple[Frame, Array]]:
        """Nothing waits."""
        return iter(())


def _composer(spec: TensorSpec, view: View, context: Context, fps: float | None) -> Plain | Captioned:
    panels = Panels(spec, view, context.units.get(spec.name))
    if view.caption or view.truth:
        return Captioned(panels, view, context, 1 / fps if fps else None)
    return Plain(panels, view)


@contextmanager
def png_folder(
    folder: Path, signature: Signature, view: View, context: Context, fps: float | None
) -> Iterator[Write]:
    """``000000.png`` ... by frame index, ``000000_NAME.png`` when several outputs are images. Grey or RGB, 8 bits."""
    image = require("PIL.Image", "images", "writing PNG images")
    composers = {spec.name: _composer(spec, view, context, fps) for spec in image_outputs(signature, view)}
    tails = _tails(list(composers))
    with _atomic_folder(folder) as temporary:

        def save(name: str, done: Iterator[tuple[Frame, Array]]) -> None:
            for frame, picture in done:
                target = temporary / f"{frame.index:06d}{tails[name]}.png"
                try:
                    image.fromarray(picture).save(target, compress_level=1)
                except OSError:  # a full disk: half a picture is none
                    target.unlink(missing_ok=True)
                    raise

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            for name, composer in composers.items():
                save(name, composer.add(frame, outputs))

        yield write
        for name, composer in composers.items():
            save(name, composer.rest())


@contextmanager
def video(
    path: Path, signature: Signature, view: View, context: Context, fps: float | None
) -> Iterator[Write]:
    """H.264 where PyAV has the encoder, else MPEG-4; one frame a step, shown until the next one, so that those that are missing take their time."""
    av = require("av", "video", f"writing {path}")
    composer = _composer(image_outputs(signature, view)[0], view, context, fps)
    rate = Fraction(fps if fps is not None and fps >= 1 else DEFAULT_FPS).limit_denominator(1001)
    period = 1 / fps if fps is not None and fps >= 1 else context.interval
    missing = Missing(path, "a picture that stays", period, float(1 / rate))
    with atomic_path(path) as temporary:
        container = av.open(str(temporary), "w")
        try:
            h264 = "libx264" in av.codecs_available
            # Fast, with little lookahead: the encoder shares the processor and the memory with the model.
            options = {"preset": "veryfast", "crf": "18"} if h264 else {}
            stream = container.add_stream("libx264" if h264 else "mpeg4", rate=rate, options=options)
            started, count, size, place = False, 0, 0, 0

            def show(done: Iterator[tuple[Frame, Array]]) -> None:
                nonlocal started, count, size, place
                for frame, shown in done:
                    picture = even(enlarged(shown))
                    if not started:
                        stream.height, stream.width = picture.shape[:2]
                        stream.pix_fmt = "yuv420p"
                        started = True
                    count, size = count + 1, picture.size
                    pixels = "gray" if picture.ndim == 2 else "rgb24"
                    made = av.VideoFrame.from_ndarray(picture, pixels)
                    place += missing.before(frame)
                    made.pts, made.time_base = place, 1 / rate
                    place += 1
                    _encode(container, stream, made)

            def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
                # Compressed, a picture is a tenth of itself at the most.
                check_room(temporary.parent, HELD_BACK * size // 10 + INDEX * count)
                show(composer.add(frame, outputs))

            yield write

            show(composer.rest())
            if not started:
                raise EdgeLstmError(f"can't write {path}", found="no frames", expected="at least one")
            _encode(container, stream, None)
        finally:
            container.close()
    missing.tell()


def _encode(container: Any, stream: Any, picture: Any) -> None:
    for packet in stream.encode(picture):
        container.mux(packet)


def _side_by_side(left: Array, right: Array) -> Array:
    """Two pictures in one, the left one brought to the right one's height; RGB when either is."""
    left = resized(left, right.shape[0])
    if left.ndim != right.ndim:
        left, right = rgb(left), rgb(right)
    return np.concatenate([left, right], 1)


def enlarged(picture: Array) -> Array:
    """So that its shorter side has at least SMALLEST_SIDE pixels."""
    factor = -(-SMALLEST_SIDE // min(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def even(picture: Array) -> Array:
    """Repeat the last row or column where the count is odd: 4:2:0 video has only even sizes."""
    height, width = picture.shape[:2]
    odd = [(0, height % 2), (0, width % 2)] + [(0, 0)] * (picture.ndim - 2)
    return np.ascontiguousarray(np.pad(picture, odd, mode="edge"))


def _tails(names: list[str]) -> dict[str, str]:
    """What tells the files of one output from those of another, on any disk; nothing where there is but one."""
    if len(names) == 1:
        return {names[0]: ""}
    tails = {name: "_" + re.sub(r"[^\w.-]", "_", name) for name in names}
    if len({one_file(tail) for tail in tails.values()}) == len(names):
        return tails
    return {name: f"_{place}{tail}" for place, (name, tail) in enumerate(tails.items(), 1)}


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place on success; ``folder`` must be new or empty."""
    try:
        if folder.is_file():
            raise EdgeLstmError(f"can't write folder {folder}", found="a file")
        if folder.is_dir() and any(folder.iterdir()):
            raise EdgeLstmError(
                f"can't write folder {folder}", found="files in it", expected="a new or empty folder"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise EdgeLstmError(
            f"can't write folder {folder}",
            found=error.strerror or str(error),
            hint=f"Create {folder.parent} or choose another path",
        ) from error
    try:
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        temporary.chmod(0o755)
        temporary.replace(folder)
    except OSError as error:
        raise EdgeLstmError(f"can't write folder {folder}", found=error.strerror or str(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
