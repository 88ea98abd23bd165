"""Where outputs go; nothing is there until the sink closes without an error.

``open_sink`` finds the kind from the path: :data:`FILES` is the table of kinds of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks import arrays, geotiff, lines, netcdf, pictures, tables, wav
from edgelstm.pipeline.sinks.panels import View
from edgelstm.pipeline.sources.source import Array, Frame

__all__ = ["KINDS", "Sink", "View", "open_sink"]

Write = Callable[[Frame, Mapping[str, Array], float], None]


@dataclass(frozen=True)
class Target:
    """What a sink is opened for. fps: frames a second, None when unknown. append: to the lines of a file that is there."""

    path: Path
    signature: Signature
    fps: float | None
    view: View
    context: Context
    append: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of file that outputs are written to. what: in words, for help texts and messages; suffixes in lower case."""

    what: str
    suffixes: tuple[str, ...]
    open: Callable[[Target], AbstractContextManager[Write]]


#: A new kind of file is a line here.
FILES = (
    Kind("FILE.npz", (".npz",), lambda to: arrays.npz(to.path, to.signature, to.context)),
    Kind("FILE.jsonl", (".jsonl",), lambda to: lines.json_lines(to.path, to.signature, to.append)),
    Kind("FILE.csv or .parquet", (".csv", ".parquet"), lambda to: tables.table(to.path, to.signature)),
    Kind("FILE.nc", (".nc",), lambda to: netcdf.netcdf(to.path, to.signature, to.context)),
    Kind(
        "FILE.tif",
        (".tif", ".tiff"),
        lambda to: geotiff.geotiff(to.path, to.signature, to.view, to.context),
    ),
    Kind("FILE.wav", (".wav",), lambda to: wav.wav(to.path, to.signature, to.view, to.context)),
    Kind(
        "FILE.mp4", (".mp4",), lambda to: pictures.video(to.path, to.signature, to.view, to.context, to.fps)
    ),
)
#: The sinks there are, in words, for help texts and messages.
KINDS = ", ".join(
    (*(kind.what for kind in FILES), "- (JSON lines on standard output) or FOLDER/ for PNG images")
)


class Sink:
    """Takes the outputs of one stream, frame by frame; a context manager.

    Leaving the ``with`` block without an error, or ``close()``, puts the result in its place; leaving it by an error
    deletes what was written. What is kept is copied, so outputs need only be valid during ``write``.
    """

    def __init__(self, opened: AbstractContextManager[Write], signature: Signature, path: Path) -> None:
        self.path = path
        self.frames = 0
        self._outputs = signature.outputs
        self._opened = opened
        self._closed = False
        self._write = opened.__enter__()

    def write(self, frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        """Add the outputs of one step.

        frame: the raw frame (of a window: its last). outputs: every output of the Signature by name, each of its
        ``frame_shape``, without the stream axis; other names are passed over. seconds: how long the step took.
        """
        if self._closed:
            raise EdgeLstmError(f"{self.path} is closed", expected="writes before close")
        for spec in self._outputs:
            found = outputs[spec.name].shape if spec.name in outputs else None
            if found != spec.frame_shape:
                raise EdgeLstmError(
                    f"output {spec.name!r} for {self.path}",
                    found="nothing" if found is None else list(found),
                    expected=f"{list(spec.frame_shape)}, one stream's output",
                )
        self._write(frame, outputs, seconds)
        self.frames += 1

    def close(self) -> None:
        """Finish, and put the result in its place. May be called again."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self._closed = True
            self._opened.__exit__(kind, error, trace)


def open_sink(
    path: str | os.PathLike[str],
    signature: Signature,
    *,
    fps: float | None = None,
    view: View | None = None,
    context: Context | None = None,
    append: bool = False,
) -> Sink:
    """Open the sink at ``path`` for the outputs of ``signature``.

    ===========  ================================================================================================
    FILE.npz     an array for each output, stacked over time on axis 0; ``time`` (seconds from the first frame), ``name`` of each
                 step, ``stream`` where a source holds several, ``attrs`` (JSON: units, start, grid)
    FILE.jsonl   a line for each frame: index, name, time, milliseconds; of each output min, mean, max, and all values
                 if there are at most 64
    -            the same lines on standard output, each as soon as it is known
    FILE.csv     a row for each step, a column for each element of each output; FILE.parquet alike     ``edgelstm[tables]``
    FILE.wav     samples of one output, 16 bits, for a source that is sound
    FILE.nc      NetCDF by the CF conventions: times, lead times, grid, projection, units                ``edgelstm[geo]``
    FILE.tif     GeoTIFF, lead times as bands: ``{time}`` or ``{index}`` in the name is a file for each step, else the
                 newest step                                                                          ``edgelstm[geo]``
    FOLDER/      a PNG for each frame and output that is an image, in a new or empty folder
    FILE.mp4     a video of one output that is an image; ``fps`` frames a second, 10 when unknown or below 1
    ===========  ================================================================================================

    ``context`` is what may be said beside the values: when, where, in which units. ``view`` says what the last two show: which output, channel and lead time, in which colours, with or without captions.
    ``append``: a .jsonl file gets its lines one by one, behind those it has, instead of all at the end; other kinds don't change.
    Raises EdgeLstmError, before any frame is computed, when the path can't be written or no output is an image.
    """
    to = Target(Path(path), signature, fps, view or View(), context or Context(), append)
    suffix = to.path.suffix.lower()
    if str(path).endswith(("/", os.sep)) or to.path.is_dir():
        return Sink(pictures.png_folder(to.path, signature, to.view, to.context, fps), signature, to.path)
    if str(path) == "-":
        return Sink(lines.json_lines(to.path, signature), signature, to.path)
    kind = next((kind for kind in FILES if suffix in kind.suffixes), None)
    if kind is None:
        raise EdgeLstmError(f"output {to.path}", found=f"a {suffix or 'nameless'} file", expected=KINDS)
    return Sink(kind.open(to), signature, to.path)
