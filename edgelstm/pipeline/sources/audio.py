"""Sound files other than WAV, decoded by PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.sound import blocks, channel_of, mono, no_blocks
from edgelstm.pipeline.sources.source import Array, Source
from edgelstm.pipeline.sources.video import FILE

SUFFIXES = (".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac")


def open_audio(path: Path, options: Mapping[str, str]) -> Source:
    """As a WAV file; channel: which, from 0. A damaged place is an EdgeLstmError."""
    av = require("av", "video", f"reading {path}")
    try:
        with av.open(str(path), options=FILE) as container:
            streams = container.streams.audio
            if len(streams) != 1:
                raise EdgeLstmError(f"{path}: sound", found=f"{len(streams)} tracks", expected="one")
            rate, channels = streams[0].rate, streams[0].channels
            if not rate or not channels:
                raise ValueError("no rate")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise EdgeLstmError(f"{path}: not a sound file, or a damaged one", found=reason(error)) from error
    channel = channel_of(str(path), options.get("channel"), channels)

    def reframe(length: int, hop: int, wanted: int | None) -> Source:
        wanted = wanted or rate
        said = [f"{rate} Hz, {count_of(channels, 'channel')}"]
        if channels > 1:
            said.append("the mean of all channels" if channel is None else f"channel {channel}")
        if wanted != rate:
            require("soxr", "audio", f"resampling {path}")
            said.append(f"resampled to {wanted} Hz")
        return Source(
            f"sound {path}",
            lambda: blocks(_chunks(av, path, channel), rate, length, hop, wanted),
            fps=wanted / hop,
            said=tuple(said),
        )

    return Source(f"sound {path}", no_blocks(f"sound {path}"), reframe=reframe)


def _chunks(av: Any, path: Path, channel: int | None) -> Iterator[Array]:
    count = 0
    try:
        with av.open(str(path), options=FILE) as container:
            planar = av.AudioResampler(format="fltp")
            for frame in container.decode(audio=0):
                count += frame.samples
                for part in planar.resample(frame):
                    yield mono(part.to_ndarray(), channel)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise EdgeLstmError(f"{path}: can't be read from sample {count} on", found=reason(error)) from error


def reason(error: BaseException) -> str:
    """FFmpeg's own word for it, without what was opened."""
    return getattr(error, "strerror", None) or type(error).__name__
