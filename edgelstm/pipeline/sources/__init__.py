"""Where frames come from. ``open_source`` finds the kind from the path: :data:`FILES` is the table of kinds of files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.sources import (
    arrays,
    audio,
    camera,
    gstreamer,
    images,
    microphone,
    radar,
    recording,
    table,
    video,
    wav,
    zeromq,
)
from edgelstm.pipeline.sources.address import split_options
from edgelstm.pipeline.sources.folder import Follow, natural
from edgelstm.pipeline.sources.given import PREFIX, open_given
from edgelstm.pipeline.sources.source import Frame, NothingYet, Source

__all__ = ["KINDS", "Frame", "NothingYet", "Source", "is_live", "open_source", "streams_named"]


@dataclass(frozen=True)
class Kind:
    """A kind of file that frames are read from.

    what: in words, for help texts and messages. suffixes: in lower case. open: gives the Source of a path and of NAME
    in ``FILE:NAME``, None without one. takes_name: whether there may be one. options: names of what may be said behind
    the file, ``FILE:name=value:name=value``, and how such a source is opened.
    """

    what: str
    suffixes: tuple[str, ...]
    open: Callable[[Path, str | None], Source]
    takes_name: bool = False
    options: tuple[str, ...] = ()
    open_with: Callable[[Path, Mapping[str, str]], Source] | None = None


#: A new kind of file is a line here.
FILES = (
    Kind(
        "a TIFF stack, an animation (.gif, .webp, .png)", images.SUFFIXES, lambda p, _: images.open_image(p)
    ),
    Kind("a video file", video.SUFFIXES, video.open_video, takes_name=True),
    Kind("an .npy file", (".npy",), lambda p, _: arrays.open_npy(p)),
    Kind("an .npz file (or FILE.npz:NAME)", (".npz",), arrays.open_npz, takes_name=True),
    Kind(
        "a table (.csv, .tsv, .txt, .parquet)",
        table.SUFFIXES,
        lambda p, _: table.open_table(p, {}),
        options=table.OPTIONS,
        open_with=table.open_table,
    ),
    Kind(
        "a sound (.wav)",
        wav.SUFFIXES,
        lambda p, _: wav.open_wav(p, {}),
        options=wav.OPTIONS,
        open_with=wav.open_wav,
    ),
    Kind(
        "a recording (.mcap)",
        recording.SUFFIXES,
        lambda p, _: recording.open_mcap([p], {}),
        options=recording.OPTIONS,
        open_with=lambda p, options: recording.open_mcap([p], options),
    ),
    Kind(
        "another sound file (.flac, .ogg, .mp3, ...)",
        audio.SUFFIXES,
        lambda p, _: audio.open_audio(p, {}),
        options=wav.OPTIONS,
        open_with=audio.open_audio,
    ),
)


@dataclass(frozen=True)
class LiveKind:
    """A kind of source that is no file. what: in words. prefixes: how its addresses begin. open: gives the Source of one."""

    what: str
    prefixes: tuple[str, ...]
    open: Callable[[str], Source]


#: A new kind of live source is a line here.
LIVE = (
    LiveKind("a camera (rtsp://, http://, /dev/video0)", camera.PREFIXES, camera.open_camera),
    LiveKind("a microphone (mic:default)", microphone.PREFIXES, microphone.open_microphone),
    LiveKind("a GStreamer pipeline (gst:...)", gstreamer.PREFIXES, gstreamer.open_gstreamer),
    LiveKind("arrays over ZeroMQ (zmq://host:port)", zeromq.PREFIXES, zeromq.open_zeromq),
)
#: The sources there are, in words, for help texts and messages.
KINDS = ", ".join(
    (
        "a folder of radar files (.h5) of KNMI or OPERA",
        "a folder of images or .npy files",
        *(kind.what for kind in (*FILES, *LIVE)),
    )
)


def is_live(spec: str) -> bool:
    """Whether ``spec`` is an address, and no path."""
    return spec.lower().startswith((PREFIX, *(prefix for kind in LIVE for prefix in kind.prefixes)))


def streams_named(spec: str) -> int:
    """How many streams ``spec`` itself names, also where it can't be opened now; 1 where it names none."""
    file, options = _split(spec)
    is_table = Path(file).suffix.lower() in table.SUFFIXES or Path(file).is_dir()
    return table.named_streams(options["keys"]) if is_table and "keys" in options else 1


def is_sound(spec: str) -> bool:
    """Whether ``spec`` names sound, also where it can't be opened now: its hop is then one of samples."""
    suffix = Path(_split(spec)[0]).suffix.lower()
    return spec.startswith(microphone.PREFIXES) or suffix in (*wav.SUFFIXES, *audio.SUFFIXES)


def open_source(
    spec: str, *, limit: int | None = None, follow: bool = False, idle: float | None = None
) -> Source:
    """Open the source at ``spec`` and give its first ``limit`` frames, or all.

    =====================  =========================================================================================
    folder with .h5 files  radar composites [rows, columns] of KNMI or OPERA (ODIM), in order of time ``edgelstm[radar]``
    FOLDER:image2          one of several images in each of those files; of OPERA's, ``FOLDER:DBZH``
    folder of .npy files   a frame each, in natural order
    folder with images     [H, W, 3] RGB or [H, W] grey, in natural order                       ``edgelstm[images]``
    TIFF, GIF, WebP, PNG   the pages of a stack, the pictures of an animation, or one frame      ``edgelstm[images]``
    video file             [H, W, 3] RGB or [H, W] grey                                         ``edgelstm[video]``
    FILE.mkv:1             one of several videos in a file, counted from 0
    FILE.npy               array[t], axis 0 is time
    FILE.npz, or           the array NAME, else ``frames``, else the only one; several arrays of one length give
    FILE.npz:NAME          mappings, for models with several inputs
    FILE.csv, .parquet     [columns], a frame a row; ``FILE.csv:key=unit:columns=a,b:time=t:scale=own``: a stream for each
                           value of a column (Parquet: ``edgelstm[tables]``), ``docs/tables.md``
    FOLDER of .parquet     one table, file by file                                              ``edgelstm[tables]``
    FILE.wav               samples, cut as the model says, ``docs/sound.md``; ``FILE.wav:channel=0``
    FILE.flac, .ogg, .mp3  the same by PyAV                                                     ``edgelstm[video]``
    FILE.mcap              images and arrays of ROS 2 messages, ``FILE.mcap:topic=/camera``, a stream each of ``topic=/a,/b``;
                           ``topic=/joints:field=position``; or the folder of one that is in parts                                      ``edgelstm[mcap]``
    gst:v4l2src ! ...      pictures of a GStreamer pipeline, ``docs/sources.md``
    zmq://HOST:PORT        arrays that somebody publishes, ``docs/sources.md``                  ``edgelstm[zmq]``
    mic:default            a microphone, ``docs/sound.md``                                      ``edgelstm[video]``
    rtsp://, http://,      a camera: as video, each frame with its time; ``#read_timeout=5`` and further options behind it,
    /dev/video0            ``docs/sources.md``                                                  ``edgelstm[video]``
    =====================  =========================================================================================

    ``follow`` a folder (of Parquet too) or a table of text: wait for further files, or rows, for ``idle`` seconds after the last one or (None) for ever.

    Values are those of the file, in its depth, uint8 to 8 bits and uint16 above; images and video are upright as the file
    says. ``Source.said`` tells what was done, ``docs/sources.md`` what each format becomes.

    Raises EdgeLstmError when there is no such source or its first look (folder, header, first frame) is wrong; what is
    wrong with a later frame shows when it is read.
    """
    how = Follow(follow, idle)
    source = _open(spec, how)
    source.left_out = how.left_out
    return source if limit is None else source.limit(limit)


def _open(spec: str, follow: Follow) -> Source:
    if spec.startswith(PREFIX):
        return open_given(spec.removeprefix(PREFIX), {})
    for live in LIVE:
        if spec.lower().startswith(live.prefixes):
            if follow.on:
                raise EdgeLstmError(
                    "follow", found=live.what, expected="a folder that further files come into"
                )
            return live.open(spec)
    if re.match(r"[\w+.-]+://", spec) and not Path(spec).exists():
        raise EdgeLstmError(f"source {spec.partition('://')[0]}://...", expected=KINDS)
    spec, options = _split(spec)
    path, key, chosen = Path(spec), "", False
    if not path.exists() and ":" in spec:
        stem, _, key = spec.rpartition(":")
        path, chosen = Path(stem), True
    if path.is_dir():
        return _open_folder(path, key if chosen else None, follow, options)
    if not path.is_file():
        raise EdgeLstmError(f"source {spec if chosen else path} does not exist", hint="Check the path")
    suffix = path.suffix.lower()
    kind = next((kind for kind in FILES if suffix in kind.suffixes), None)
    if kind is None:
        raise EdgeLstmError(f"source {path}", found=f"a {suffix or 'nameless'} file", expected=KINDS)
    if chosen and not kind.takes_name:
        raise EdgeLstmError(
            f"source {spec}",
            found=f"{key!r} chosen in {kind.what}",
            expected=f"{path}, which holds one source",
        )
    unknown = [name for name in options if name not in kind.options]
    if unknown:
        raise EdgeLstmError(
            f"source {path}: option {unknown[0]}",
            found=kind.what,
            expected=", ".join(kind.options) or "no options",
        )
    if follow.on:
        if kind.suffixes == recording.SUFFIXES:
            raise _recording_followed(path)
        if kind.suffixes != table.SUFFIXES:
            raise EdgeLstmError(
                f"follow: source {path}",
                found="a file",
                expected="a folder that further files come into, or a table of text that grows",
            )
        return table.open_table(path, options, follow)
    if options and kind.open_with is not None:
        return kind.open_with(path, options)
    return kind.open(path, key if chosen else None)


def _recording_followed(path: Path) -> EdgeLstmError:
    return EdgeLstmError(
        f"follow: source {path}",
        found="MCAP, which can be read once its recorder has closed it",
        expected="a source that can be followed",
        hint="Live, take the messages over ZeroMQ (zmq://host:port), or read each file once it is closed",
    )


def _split(spec: str) -> tuple[str, dict[str, str]]:
    return split_options(spec, {name for kind in FILES for name in kind.options})


def _open_folder(folder: Path, key: str | None, follow: Follow, options: Mapping[str, str]) -> Source:
    try:
        files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    except OSError as error:
        raise EdgeLstmError(f"can't read folder {folder}", found=error.strerror) from error
    parts = sorted((p for p in files if p.suffix.lower() in recording.SUFFIXES), key=natural)
    frames = (*radar.SUFFIXES, *images.SUFFIXES, ".npy", table.PARTS)
    if parts and follow.on and not any(p.suffix.lower() in frames for p in files):
        raise _recording_followed(folder)
    if parts and not follow.on and set(options) <= set(recording.OPTIONS):
        return recording.open_mcap(parts, options)
    if any(p.suffix.lower() == table.PARTS for p in files) and set(options) <= set(table.OPTIONS):
        others = [
            p
            for p in files
            if p.suffix.lower() in (*radar.SUFFIXES, *images.SUFFIXES, ".npy", *recording.SUFFIXES)
        ]
        if others:
            raise EdgeLstmError(
                f"source {folder}", found=f"Parquet and {others[0].name}", expected="one kind in a folder"
            )
        return table.open_table(folder, options, follow if follow.on else None)
    if options:
        raise EdgeLstmError(
            f"source {folder}: option {next(iter(options))}", found="a folder", expected="no options"
        )
    maps = [p for p in files if p.suffix.lower() in radar.SUFFIXES]
    pictures = [p for p in files if p.suffix.lower() in images.SUFFIXES]
    if maps and pictures:
        raise EdgeLstmError(
            f"source {folder}",
            found=f"{count_of(len(maps), 'radar file')} and {count_of(len(pictures), 'image')}",
            expected="one kind in a folder",
        )
    if key is not None and not maps:
        raise EdgeLstmError(
            f"source {folder}:{key}", found="a folder without radar files", expected="FOLDER:image2 of those"
        )
    if maps:
        return radar.open_radar(folder, maps, key, follow)
    cubes = [p for p in files if p.suffix.lower() == ".npy"]
    if cubes and not pictures:
        return arrays.open_npy_folder(folder, cubes, follow)
    if pictures:
        return images.open_images(
            folder, pictures, [p for p in files if p.suffix.lower() not in images.SUFFIXES], follow
        )
    hint = "A pipeline file of `edgelstm serve` waits for the first file" if follow.on else None
    refused = NothingYet if follow.on else EdgeLstmError
    if not files:
        wanted = "radar files (.h5), images or .npy files in it"
        raise refused(f"source {folder}", found="an empty folder", expected=wanted, hint=hint)
    raise refused(
        f"source {folder}",
        found=f"a folder with {count_of(len(files), 'other file')}",
        expected=KINDS,
        hint=hint,
    )
