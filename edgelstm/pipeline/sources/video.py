"""Video files, decoded by PyAV (FFmpeg)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources import h264
from edgelstm.pipeline.sources.pixels import read_picture
from edgelstm.pipeline.sources.source import Frame, Source, check_frame_size

log = logging.getLogger(__name__)

#: FFmpeg's options for a file: one that is a list of other files, whatever its name, is not followed.
FILE = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,h264,hevc,ivf,nut,mxf,flac,mp3,aac,wav,aiff",
}
SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")


def open_video(path: Path, number: str | None = None) -> Source:
    """Frames of the only video stream, or of stream ``number`` (0, 1, ...) as ``FILE.mkv:1`` chooses it.

    Grey [H, W] with its stored values or RGB [H, W, 3], upright; uint8 to 8 bits, uint16 above: see ``docs/sources.md``.
    A file that ends before the length in its header, or a frame that the decoder reports as damaged, is an
    EdgeLstmError. H.264 has no checksums: single wrong bits may show as wrong pixels only.
    """
    av = require("av", "video", f"reading {path}")
    try:
        with av.open(str(path), options=FILE) as container:
            video, said = choose_video(av, path, container, number, f"{path}:0")
            if video.codec_context.name == "rawvideo" and str(video.codec_context.pix_fmt).startswith(
                "rgb555"
            ):
                raise EdgeLstmError(
                    f"{path}: uncompressed video of 16 bits a pixel whose format is not named",
                    found="5-bit RGB, if the file is taken at its word; most often it is 16-bit grey",
                    expected="a format that says so",
                    hint="Write grey of 16 bits as FFV1 in .mkv, as a TIFF stack or as .npy",
                )
            check_frame_size(str(path), (video.height, video.width, 3), np.dtype(np.uint8))
            fps = float(video.average_rate) if video.average_rate else None
            length = video.frames or None
            place = video.index
            said += _times(container, video)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise EdgeLstmError(f"{path}: not a video, or a damaged one", found=_reason(error)) from error
    return Source(
        f"video {path}", lambda: _frames(av, path, place), length=length, fps=fps, said=tuple(said), look=True
    )


def choose_video(
    av: Any, path: object, container: Any, number: str | None, example: str
) -> tuple[Any, list[str]]:
    """The stream and what is to be said of it. example: how one is chosen, for messages."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams or any(
        stream.codec_context is None for stream in streams
    ):  # one that FFmpeg has no decoder for
        raise EdgeLstmError(f"{path}: no video in it that can be decoded")
    names = [f"{s.codec_context.name} {s.width} x {s.height} {s.codec_context.pix_fmt}" for s in streams]
    listed = "; ".join(f"{k}: {name}" for k, name in enumerate(names))
    if number is None:
        if len(streams) > 1:
            raise EdgeLstmError(
                f"{path} holds {count_of(len(streams), 'video')}",
                found=listed,
                expected="one",
                hint=f"Choose one by the source {example}",
            )
        return streams[0], []
    if not number.isdecimal() or int(number) >= len(streams):
        raise EdgeLstmError(
            f"{path}: no video {number!r}", found=listed, expected=f"a number of these, as in {example}"
        )
    return streams[int(number)], [f"video {number} of the file's {len(streams)}"] if len(streams) > 1 else []


#: Packets and bytes whose times are looked at before the first frame; reading all of a long file would take long.
_LOOKED_AT, _BYTES_LOOKED_AT = 1000, 32 * 1024**2


def _times(container: Any, video: Any) -> list[str]:
    said = []
    stamps: list[float] = []
    size = 0
    for packet in container.demux(video):
        if packet.pts is not None:
            stamps.append(float(packet.pts * packet.time_base))
        size += packet.size
        if len(stamps) == _LOOKED_AT or size > _BYTES_LOOKED_AT:
            # Of the last ones, some are shown later than packets that are not looked at.
            stamps = sorted(stamps)[: -min(32, len(stamps) // 2 + 1)]
            break
    stamps.sort()
    steps = np.diff(stamps)
    if len(steps) and steps.max() > 1.2 * steps.min() + 0.003:  # Matroska rounds to milliseconds
        average = len(steps) / (stamps[-1] - stamps[0])
        said.append(
            f"frames come at varying times, {average:.3g} a second on average: each is one step, its time is kept"
        )
    ratio = video.sample_aspect_ratio
    if ratio and ratio != 1:
        said.append(f"pixels are not square, {ratio.numerator}:{ratio.denominator}: read as stored")
    return said


def _frames(av: Any, path: Path, place: int) -> Iterator[Frame]:
    index = -1
    try:
        with av.open(str(path), options=FILE) as container:
            video = container.streams[place]
            start = last = luma = gap = None
            numbers: h264.FrameNumbers | None = None
            end = 0.0  # of the last packet, in seconds: the last frame may be shown for long
            for packet in container.demux(video):
                if numbers is None and video.codec_context.name == "h264":
                    numbers = h264.FrameNumbers(video.codec_context.extradata or b"")
                if numbers is not None and numbers.missing(bytes(packet)):
                    gap = "pictures are missing: what follows is wrong until the next key frame"
                    log.warning("%s, frame %d: %s", path, index + 1, gap)
                if luma is None:
                    context = video.codec_context
                    luma = context.name == "h264" and h264.is_grey(context.extradata or b"", bytes(packet))
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                for picture in packet.decode():
                    index += 1
                    if picture.is_corrupt:
                        raise EdgeLstmError(f"{path}: frame {index} is damaged", expected="a whole video")
                    last = picture.time
                    start = last if start is None else start
                    time = None if last is None or start is None else last - start
                    name = str(index) if time is None else f"{time:.3f} s"
                    data, values, notes = read_picture(
                        av, picture, f"{path}: frame {index}", luma=bool(luma), look=not index
                    )
                    yield Frame(index, time, name, data, values, notes, gap=gap)
                    gap = None
            if start is not None and last is not None:
                _check_end(path, container, video, index + 1, start, last, end)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise EdgeLstmError(f"{path}: can't read frame {index + 1}", found=_reason(error)) from error


def _check_end(
    path: Path, container: Any, video: Any, count: int, start: float, last: float, packets: float
) -> None:
    """Raise EdgeLstmError when the file ends before its header says.

    The last frame may be shown for long, so its time alone proves nothing. MP4 keeps how long each frame is shown: the
    last packet must reach the end. Matroska and AVI state their own size in bytes. A length in seconds honours edit
    lists, which a count of frames does not.
    """
    kind = container.format.name.partition(",")[0]
    frame = 1 / float(video.average_rate) if video.average_rate else 0.0
    end = None
    if kind == "mov" and video.duration is not None:
        end = start + float(video.duration * video.time_base)
        short = packets + 2.5 * frame < end
    elif kind in ("matroska", "avi"):
        # In Matroska the length is of the whole file, so it says something only where no sound may outlast the picture.
        if kind == "matroska" and container.duration is not None and len(container.streams) == 1:
            end = container.duration / 1e6
        short = _cut(path)
    else:
        return
    if short and (end is None or last + 2.5 * frame < end):
        raise EdgeLstmError(
            f"{path} ends early at frame {count}",
            found=f"{last + frame - start:.2f} s of video",
            expected=f"{end - start:.2f} s by its header"
            if end is not None
            else "the bytes that its header states",
            hint="The file is truncated or damaged",
        )


def _cut(path: Path) -> bool:
    """Whether a Matroska or AVI file has fewer bytes than the element that holds everything states."""
    with path.open("rb") as file:
        head = file.read(4096)
        size = file.seek(0, os.SEEK_END)
    if head[:4] == b"RIFF":
        return size < 8 + int.from_bytes(head[4:8], "little")
    place = 0
    for _ in range(8):  # EBML header, perhaps Void elements, Segment
        identity = head[place : place + 4]
        width = 1 if identity[:1] == b"\xec" else 4
        length, place = _ebml_size(head, place + width)
        if length is None:
            return False  # written by a recorder that never came back to it
        if identity == b"\x18\x53\x80\x67":
            return size < place + length
        place += length
    return False


def _ebml_size(data: bytes, place: int) -> tuple[int | None, int]:
    """A variable-length integer of EBML (RFC 8794): (value, the place after it); None for the unknown size."""
    if place >= len(data) or not data[place]:
        return None, place
    width = 9 - data[place].bit_length()
    value = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), place + width


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
