"""WAV files: the newest samples of one channel, at the rate, in the length and by the hop that the model takes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.sound import blocks, channel_of, no_blocks
from edgelstm.pipeline.sources.source import Array, Source

SUFFIXES = (".wav", ".wave")
OPTIONS = ("channel",)
#: Samples read at a time, of each channel.
CHUNK = 16384
#: A header that was never finished states one of these.
_UNKNOWN = (0, 0xFFFFFFFF)


@dataclass(frozen=True)
class Sound:
    """What a WAV file's header says. data: where its samples begin; frames: how many there are, of all channels."""

    rate: int
    channels: int
    kind: str  # NumPy's, "i3" for 24 bits
    data: int
    frames: int


def open_wav(path: Path, options: Mapping[str, str]) -> Source:
    """A source whose frames the model's preprocessing cuts (``samples=length,hop,rate``), float32 [length] in -1..1.

    channel: which, from 0; without it the mean of all. Frame k holds the ``length`` samples up to (k + 1) * hop, zeros before
    the first; the last one is filled up with zeros. Resampled by soxr where the rate is another.
    """
    sound = _header(path)
    channel = channel_of(str(path), options.get("channel"), sound.channels)

    def reframe(length: int, hop: int, rate: int | None) -> Source:
        wanted = rate or sound.rate
        said = [
            f"{sound.frames / sound.rate:.2f} s at {sound.rate} Hz, {count_of(sound.channels, 'channel')}"
        ]
        if sound.channels > 1:
            said.append("the mean of all channels" if channel is None else f"channel {channel}")
        if wanted != sound.rate:
            require("soxr", "audio", f"resampling {path}")
            said.append(f"resampled to {wanted} Hz")
        count = -(-round(sound.frames * wanted / sound.rate) // hop)
        return Source(
            f"sound {path}",
            lambda: blocks(_mono(path, sound, channel), sound.rate, length, hop, wanted),
            length=count if wanted == sound.rate else None,
            fps=wanted / hop,
            said=tuple(said),
        )

    return Source(f"sound {path}", no_blocks(f"sound {path}"), reframe=reframe)


def _mono(path: Path, sound: Sound, channel: int | None) -> Iterator[Array]:
    width = int(sound.kind[1])
    left = sound.frames
    try:
        with path.open("rb") as file:
            file.seek(sound.data)
            while left:
                data = file.read(min(left, CHUNK) * width * sound.channels)
                data = data[: len(data) // (width * sound.channels) * width * sound.channels]
                if not data:
                    raise EdgeLstmError(f"{path} ends early", found=f"{count_of(left, 'sample')} missing")
                values = _decode(data, sound.kind).reshape(-1, sound.channels)
                left -= len(values)
                yield (values.mean(1, dtype=np.float32) if channel is None else values[:, channel]).astype(
                    np.float32
                )
    except OSError as error:
        raise EdgeLstmError(f"can't read {path}", found=error.strerror or str(error)) from error


def _decode(data: bytes, kind: str) -> Array:
    if kind == "u1":
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if kind == "i3":
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(parts), 4), np.uint8)
        wide[:, 1:] = parts
        return (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
    values = np.frombuffer(data, f"<{kind}")
    if kind[0] == "f":
        return values.astype(np.float32)
    return (values / 2.0 ** (8 * values.itemsize - 1)).astype(np.float32)


def _header(path: Path) -> Sound:
    try:
        with path.open("rb") as file:
            return _parse(path, file)
    except (OSError, struct.error) as error:
        raise EdgeLstmError(f"{path}: not a WAV file, or a damaged one", found=str(error)) from error


def _parse(path: Path, file: IO[bytes]) -> Sound:
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise EdgeLstmError(f"{path}: not a WAV file", found=repr(head[:4]), expected="RIFF ... WAVE")
    size = file.seek(0, 2)
    place, form = 12, None
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        place += 8
        if name == b"fmt ":
            form = struct.unpack("<HHIIHH", file.read(16))
            code = form[0]
            if code == 0xFFFE and length >= 40:
                code = struct.unpack("<H", file.read(10)[8:])[0]
            form = (code, *form[1:])
        elif name == b"data" and form is not None:
            code, channels, rate, _, _, bits = form
            kind = {
                (1, 8): "u1",
                (1, 16): "i2",
                (1, 24): "i3",
                (1, 32): "i4",
                (3, 32): "f4",
                (3, 64): "f8",
            }.get((code, bits))
            if kind is None or not channels or not rate:
                raise EdgeLstmError(
                    f"{path}: samples",
                    found=f"format {code}, {bits} bits, {count_of(channels, 'channel')} at {rate} Hz",
                    expected="PCM of 8, 16, 24 or 32 bits, or floating point",
                    hint="Convert it first, e.g. with ffmpeg",
                )
            there = size - place
            if length in _UNKNOWN:
                length = there
            if length > there:
                raise EdgeLstmError(
                    f"{path} ends early",
                    found=f"{count_of(there, 'byte')} of samples",
                    expected=f"{length}",
                    hint="The file is truncated",
                )
            frames = length // (bits // 8 * channels)
            if not frames:
                raise EdgeLstmError(f"{path}: no samples", expected="at least one")
            return Sound(rate, channels, kind, place, frames)
        place += length + length % 2
    raise EdgeLstmError(f"{path}: no samples in the file", expected="a fmt and a data chunk")
