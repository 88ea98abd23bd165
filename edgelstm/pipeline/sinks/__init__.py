"""Where outputs go; nothing is there until the sink closes without an error.

``open_sink`` finds the kind from the path or address: :data:`FILES` and :data:`ADDRESSES` are the tables of kinds. What goes to an address is
there at once; that it may be away is no error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks import (
    arrays,
    foxglove,
    geotiff,
    lines,
    mjpeg,
    mqtt,
    netcdf,
    odim,
    pictures,
    rotating,
    rtsp,
    tables,
    wav,
    webhook,
    zeromq,
)
from edgelstm.pipeline.sinks.delivery import Undelivered
from edgelstm.pipeline.sinks.panels import View
from edgelstm.pipeline.sinks.target import CAPTIONS, PARTS, PICTURES, TLS, Options, Target, is_address, shown
from edgelstm.pipeline.sources.source import Array, Frame

__all__ = [
    "KINDS",
    "NETWORK",
    "Kind",
    "Options",
    "Sink",
    "Target",
    "Undelivered",
    "View",
    "Write",
    "check_package",
    "in_physical_units",
    "is_address",
    "kind_of",
    "open_sink",
    "shown",
]

Write = Callable[[Frame, Mapping[str, Array], float], None]


@dataclass(frozen=True)
class Kind:
    """A kind of file, or of address, that outputs go to.

    what: in words, for help texts and messages. suffixes: of files, in lower case. schemes: of addresses. options: names of those that it takes,
    see :class:`Options`. lines: it takes events too. steps: each step is written by itself, so one that can't be costs itself alone.
    placed: it says what only the source knows: grid, start, interval, rate. maps: it is read as one, in physical units.
    needs: a package's module, and the extra that brings it.
    """

    what: str
    suffixes: tuple[str, ...]
    open: Callable[[Target], AbstractContextManager[Write]]
    schemes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    lines: bool = False
    steps: bool = False
    placed: bool = False
    maps: bool = False
    needs: tuple[str, str] | None = None


#: A new kind of file is a line here.
FILES = (
    Kind(
        "FILE.npz",
        (".npz",),
        lambda to: arrays.npz(to.path, to.signature, to.context),
        options=PARTS,
        placed=True,
    ),
    Kind("FILE.jsonl", (".jsonl",), lines.json_lines, lines=True, steps=True),
    Kind("FILE.csv", (".csv",), lambda to: tables.table(to.path, to.signature), options=PARTS),
    Kind(
        "FILE.parquet",
        (".parquet",),
        lambda to: tables.table(to.path, to.signature),
        options=PARTS,
        needs=("pyarrow", "tables"),
    ),
    Kind(
        "FILE.nc",
        (".nc",),
        lambda to: netcdf.netcdf(to.path, to.signature, to.context),
        options=PARTS,
        placed=True,
        maps=True,
        needs=("h5netcdf", "geo"),
    ),
    Kind(
        "FILE.tif",
        (".tif", ".tiff"),
        lambda to: geotiff.geotiff(to.path, to.signature, to.view, to.context),
        options=("output",),
        steps=True,
        placed=True,
        maps=True,
        needs=("rasterio", "geo"),
    ),
    Kind(
        "FILE.h5",
        (".h5", ".hdf5"),
        odim.odim,
        options=("output", "quantity"),
        steps=True,
        placed=True,
        maps=True,
        needs=("h5py", "geo"),
    ),
    Kind(
        "FILE.wav",
        (".wav",),
        lambda to: wav.wav(to.path, to.signature, to.view, to.context),
        options=("output", *PARTS),
        placed=True,
    ),
    Kind(
        "FILE.mp4",
        (".mp4",),
        lambda to: pictures.video(to.path, to.signature, to.view, to.context, to.fps),
        options=(*PICTURES, *CAPTIONS, *PARTS),
        placed=True,
        needs=("av", "video"),
    ),
    Kind(
        "FILE.mcap",
        (".mcap",),
        foxglove.mcap,
        options=(*PICTURES, *PARTS),
        placed=True,
        needs=("foxglove", "foxglove"),
    ),
)
#: A new kind of address is a line here.
ADDRESSES = (
    Kind(
        "mqtt://HOST/TOPIC",
        (),
        mqtt.mqtt,
        ("mqtt", "mqtts"),
        ("user", "password", "qos", "retain", "will", "client", "timeout", *TLS),
        lines=True,
        needs=("paho.mqtt.client", "mqtt"),
    ),
    Kind(
        "https://HOST/PATH",
        (),
        webhook.webhook,
        ("http", "https"),
        ("user", "password", "headers", "timeout", "retries", "batch", "every", *TLS),
        lines=True,
    ),
    Kind("zmq://HOST:PORT", (), zeromq.zeromq, ("zmq", "zmq+ipc"), needs=("zmq", "zmq")),
    Kind("mjpeg://HOST:PORT/PATH", (), mjpeg.mjpeg, ("mjpeg",), PICTURES, needs=("PIL.Image", "images")),
    Kind("rtsp://HOST:PORT/PATH", (), rtsp.rtsp, ("rtsp",), PICTURES),
    Kind(
        "foxglove://HOST:PORT", (), foxglove.foxglove, ("foxglove",), PICTURES, needs=("foxglove", "foxglove")
    ),
)
_STANDARD = Kind("- (JSON lines on standard output)", (), lines.json_lines, lines=True)
_FOLDER = Kind(
    "FOLDER/ for PNG images",
    (),
    lambda to: pictures.png_folder(to.path, to.signature, to.view, to.context, to.fps),
    options=(*PICTURES, *CAPTIONS),
    steps=True,
    placed=True,
)
#: The addresses there are, in words.
NETWORK = ", ".join(kind.what for kind in ADDRESSES)
#: The files there are, in words, for help texts and messages.
KINDS = ", ".join((*(kind.what for kind in FILES), f"{_STANDARD.what} or {_FOLDER.what}"))


class Sink:
    """Takes the outputs of one stream, frame by frame; a context manager.

    Leaving the ``with`` block without an error, or ``close()``, puts the result in its place; leaving it by an error
    deletes what was written. What is kept is copied, so outputs need only be valid during ``write``. goes_on: a file that can't be written costs that step alone.
    """

    def __init__(
        self,
        opened: AbstractContextManager[Write],
        outputs: Sequence[TensorSpec],
        name: str,
        goes_on: bool = False,
        waits: bool = False,
    ) -> None:
        self.name = name
        self._goes_on = goes_on
        #: It may wait for its other end as long as it takes: that is no hanging.
        self.waits = waits
        self.frames = 0
        self._outputs = outputs
        self._opened = opened
        self._closed = False
        self._write = opened.__enter__()
        #: Steps that :meth:`write_all` takes at most, and seconds from one call to the next, at least.
        self.batch: int = getattr(self._write, "batch", 1)
        self.every: float = getattr(self._write, "every", 0.0)

    def write(self, frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        """Add the outputs of one step.

        frame: the raw frame (of a window: its last). outputs: every output of the Signature by name, each of its
        ``frame_shape``, without the stream axis; other names are passed over. seconds: how long the step took.
        """
        self._check(outputs)
        try:
            self._write(frame, outputs, seconds)
        except (OSError, EdgeLstmError) as error:
            if not self._goes_on or isinstance(error, Undelivered):
                raise
            raise Undelivered(f"can't write {self.name}", "not_written", found=error) from error
        self.frames += 1

    def write_all(self, steps: Sequence[tuple[Frame, Mapping[str, Array], float]]) -> None:
        """The same for several steps, ``batch`` at most: they go together, or none of them."""
        if len(steps) == 1:
            return self.write(*steps[0])
        for _, outputs, _ in steps:
            self._check(outputs)
        self._write.many(steps)  # type: ignore[attr-defined]
        self.frames += len(steps)
        return None

    def _check(self, outputs: Mapping[str, Array]) -> None:
        if self._closed:
            raise EdgeLstmError(f"{self.name} is closed", expected="writes before close")
        for spec in self._outputs:
            found = outputs[spec.name].shape if spec.name in outputs else None
            if found != spec.frame_shape:
                raise EdgeLstmError(
                    f"output {spec.name!r} for {self.name}",
                    found="nothing" if found is None else list(found),
                    expected=f"{list(spec.frame_shape)}, one stream's output",
                )

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
    options: Options | None = None,
    events: bool = False,
    stop: threading.Event | None = None,
) -> Sink:
    """Open the sink at ``path`` for the outputs of ``signature``.

    ===========  ================================================================================================
    FILE.npz     an array for each output, stacked over time on axis 0; ``time`` (seconds from the first frame), ``name`` of each
                 step, ``stream`` where a source holds several, ``attrs`` (JSON: units, start, grid); ``output_time`` is an output called so
    FILE.jsonl   a line for each frame: index, name, time, milliseconds; of each output min, mean, max, and all values
                 if there are at most 64
    -            the same lines on standard output, each as soon as it is known
    FILE.csv     a row for each step, a column for each element of each output; FILE.parquet alike     ``edgelstm[tables]``
    FILE.wav     samples of one output, 16 bits, for a source that is sound
    FILE.nc      NetCDF by the CF conventions: times, lead times, grid, projection, units                ``edgelstm[geo]``
    FILE.tif     GeoTIFF, lead times as bands: ``{time}`` or ``{index}`` in the name is a file for each step, else the
                 newest step                                                                          ``edgelstm[geo]``
    FILE.h5      ODIM HDF5, a composite for each lead time; named as .tif, ``{lead}`` in the name: a file for each   ``edgelstm[geo]``
    FOLDER/      a PNG for each frame and output that is an image, in a new or empty folder
    FILE.mp4     a video of one output that is an image; ``fps`` frames a second, 10 when unknown or below 1
    FILE.mcap    a recording for Foxglove: steps, pictures and grids                                    ``edgelstm[foxglove]``
    mqtt://...   and other addresses: docs/serve.md
    ===========  ================================================================================================

    ``context`` is what may be said beside the values: when, where, in which units. ``view`` says what the last two show: which output, channel and lead time, in which colours, with or without captions.
    ``append``: a .jsonl file gets its lines one by one, behind those it has, instead of all at the end; other kinds don't change.
    ``options`` are those of the kind. ``events``: mappings come in place of outputs, see :class:`Target`. ``stop``: when set, what can't be delivered is given up.
    Raises EdgeLstmError, before any frame is computed, when the path can't be written or no output is an image.
    """
    where = os.fspath(path)
    options = options or Options()
    kind = kind_of(where, options, events=events)
    if view is None:
        view = options.view()
    to = Target(
        where,
        signature,
        fps,
        view,
        context or Context(),
        append,
        options,
        events,
        stop or threading.Event(),
    )
    in_parts = append and "rotate" in kind.options
    opened = rotating.rotating(to, kind.open) if in_parts or options.rotate is not None else kind.open(to)
    return Sink(
        opened, () if events else signature.outputs, to.name, append and kind.steps, bool(kind.schemes)
    )


def kind_of(where: str, options: Options | None = None, *, events: bool = False) -> Kind:
    """What is at ``where``; EdgeLstmError when that is nothing that outputs, or events, go to, or does not take one of the options."""
    kind = _kind(where)
    if kind is None:
        path = Path(where)
        found = (
            where.partition("://")[0] + "://" if is_address(where) else f"a {path.suffix or 'nameless'} file"
        )
        raise EdgeLstmError(f"output {shown(where)}", found=found, expected=f"{KINDS}, {NETWORK}")
    if events and not kind.lines:
        takers = ", ".join(k.what for k in (*FILES, _STANDARD, *ADDRESSES) if k.lines)
        raise EdgeLstmError(f"events to {shown(where)}", found=kind.what, expected=takers)
    for name in [] if options is None else options.given():
        if name not in kind.options:
            expected = ", ".join(kind.options) or "no options"
            raise EdgeLstmError(f"options of {shown(where)}", found=f"the option {name}", expected=expected)
    return kind


def in_physical_units(where: str, view: View | None) -> bool:
    """Whether who reads the sink there expects physical units, where there are any: a map, or pictures that say what they show."""
    kind = _kind(where)
    return (kind is not None and kind.maps) or (view is not None and view.physical)


def check_package(where: str) -> None:
    """EdgeLstmError naming the extra to install, when what the sink at ``where`` needs is missing."""
    kind = kind_of(where)
    if kind.needs is not None:
        module, extra = kind.needs
        require(module, extra, f"{shown(where)}:")


def _kind(where: str) -> Kind | None:
    if is_address(where):
        scheme = where.partition("://")[0].lower()
        return next((kind for kind in ADDRESSES if scheme in kind.schemes), None)
    if where.endswith(("/", os.sep)) or Path(where).is_dir():
        return _FOLDER
    if where == "-":
        return _STANDARD
    suffix = Path(where).suffix.lower()
    return next((kind for kind in FILES if suffix in kind.suffixes), None)
