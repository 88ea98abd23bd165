"""Video files, decoded by PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.source import Frame, Source, check_frame_size

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mjpeg")


def open_video(path: Path) -> Source:
    """Frames uint8 [H, W, 3] RGB of the first video stream.

    A file that ends before the length in its header, or a frame that the decoder reports as damaged, is an
    EdgeLstmError. H.264 has no checksums: single wrong bits may show as wrong pixels only.
    """
    av = require("av", "video", f"reading {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise EdgeLstmError(f"{path}: no video in the file")
            video = container.streams.video[0]
            check_frame_size(str(path), (video.height, video.width, 3), np.dtype(np.uint8))
            fps = float(video.average_rate) if video.average_rate else None
            length = video.frames or None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise EdgeLstmError(f"{path}: not a video, or a damaged one", found=_reason(error)) from error
    return Source(f"video {path}", lambda: _frames(av, path), length=length, fps=fps)


def _frames(av: Any, path: Path) -> Iterator[Frame]:
    index = -1
    try:
        with av.open(str(path)) as container:
            start = last = None
            for index, picture in enumerate(container.decode(container.streams.video[0])):
                if picture.is_corrupt:
                    raise EdgeLstmError(f"{path}: frame {index} is damaged", expected="a whole video")
                last = picture.time
                start = last if start is None else start
                time = None if last is None or start is None else last - start
                name = str(index) if time is None else f"{time:.3f} s"
                yield Frame(index, time, name, picture.to_ndarray(format="rgb24"))
            if start is not None and last is not None:
                _check_end(path, container, index + 1, start, last)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise EdgeLstmError(f"{path}: can't read frame {index + 1}", found=_reason(error)) from error


#: Containers that state how long they are; for others FFmpeg guesses from the bit rate. AVI times are not exact enough.
_STATES_DURATION = ("mov", "matroska")


def _check_end(path: Path, container: Any, count: int, start: float, last: float) -> None:
    """Raise EdgeLstmError when the last frame comes too early for the length that the file states.

    A length in seconds honours edit lists, which a count of frames does not.
    """
    video = container.streams.video[0]
    if container.format.name.partition(",")[0] not in _STATES_DURATION or not video.average_rate:
        return
    if video.duration is not None:
        end = start + float(video.duration * video.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        end = (
            container.duration / 1e6
        )  # Matroska: of the whole file, so only where no sound may outlast the picture
    else:
        return
    frame = 1 / float(video.average_rate)
    if last + 2.5 * frame < end:
        raise EdgeLstmError(
            f"{path} ends early at frame {count}",
            found=f"{last + frame - start:.2f} s of video",
            expected=f"{end - start:.2f} s by its header",
            hint="The file is truncated or damaged",
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
