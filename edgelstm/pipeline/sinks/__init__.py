"""Where outputs go. ``open_sink`` finds the kind from the path; nothing is there until the sink closes without an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks import arrays, geotiff, lines, netcdf, pictures
from edgelstm.pipeline.sinks.panels import View
from edgelstm.pipeline.sources.source import Array, Frame

__all__ = ["KINDS", "Sink", "View", "open_sink"]

#: The sinks there are, in words, for help texts and messages.
KINDS = "FILE.npz, FILE.jsonl, - (JSON lines on standard output), FILE.mp4, or FOLDER/ for PNG images"

Write = Callable[[Frame, Mapping[str, Array], float], None]


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
) -> Sink:
    """Open the sink at ``path`` for the outputs of ``signature``.

    ===========  ================================================================================================
    FILE.npz     an array for each output, stacked over time on axis 0; ``time`` (seconds from the first frame), ``name`` of each
                 step, ``stream`` where a source holds several, ``attrs`` (JSON: units, start, grid)
    FILE.jsonl   a line for each frame: index, name, time, milliseconds; of each output min, mean, max, and all values
                 if there are at most 64
    -            the same lines on standard output, each as soon as it is known
    FILE.nc      NetCDF by the CF conventions: times, lead times, grid, projection, units                ``edgelstm[geo]``
    FILE.tif     GeoTIFF, lead times as bands: ``{time}`` or ``{index}`` in the name is a file for each step, else the
                 newest step                                                                          ``edgelstm[geo]``
    FOLDER/      a PNG for each frame and output that is an image, in a new or empty folder
    FILE.mp4     a video of one output that is an image; ``fps`` frames a second, 10 when unknown or below 1
    ===========  ================================================================================================

    ``context`` is what may be said beside the values: when, where, in which units. ``view`` says which output, channel and lead time the last two show, and which values are black and white.
    Raises EdgeLstmError, before any frame is computed, when the path can't be written or no output is an image.
    """
    target, view, context = Path(path), view or View(), context or Context()
    suffix = target.suffix.lower()
    if str(path).endswith(("/", os.sep)) or target.is_dir():
        return Sink(pictures.png_folder(target, signature, view), signature, target)
    if suffix == ".npz":
        return Sink(arrays.npz(target, signature, context), signature, target)
    if suffix == ".jsonl" or str(path) == "-":
        return Sink(lines.json_lines(target, signature), signature, target)
    if suffix == ".nc":
        return Sink(netcdf.netcdf(target, signature, context), signature, target)
    if suffix in (".tif", ".tiff"):
        return Sink(geotiff.geotiff(target, signature, view, context), signature, target)
    if suffix == ".mp4":
        return Sink(pictures.video(target, signature, view, fps), signature, target)
    raise EdgeLstmError(f"output {target}", found=f"a {suffix or 'nameless'} file", expected=KINDS)
