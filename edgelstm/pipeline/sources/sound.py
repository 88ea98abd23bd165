"""Sound in the blocks that a model takes: the newest samples, every hop, at the rate that it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.source import Array, Frame


def blocks(chunks: Iterable[Array], have: int, length: int, hop: int, rate: int) -> Iterator[Frame]:
    """Frame k holds the ``length`` samples up to (k + 1) * ``hop`` of ``chunks``, brought from ``have`` to ``rate`` Hz; zeros before
    the first, and behind the last."""
    window = np.zeros(length, np.float32)
    pending = np.zeros(0, np.float32)
    index = 0

    def frame(new: Array) -> Frame:
        nonlocal index
        if hop >= length:
            window[:] = new[hop - length :]
        else:
            window[:-hop] = window[hop:].copy()
            window[-hop:] = new
        made = Frame(index, index * hop / rate, f"{index * hop / rate:.3f} s", window.copy())
        index += 1
        return made

    for chunk in at_rate(chunks, have, rate):
        pending = np.concatenate([pending, chunk])
        whole = len(pending) // hop
        for k in range(whole):
            yield frame(pending[k * hop : (k + 1) * hop])
        pending = pending[whole * hop :]
    if len(pending):
        yield frame(np.pad(pending, (0, hop - len(pending))))


def at_rate(chunks: Iterable[Array], have: int, want: int) -> Iterator[Array]:
    """Resampled by soxr where the rate is another."""
    if have == want:
        yield from chunks
        return
    soxr = require("soxr", "audio", "resampling")
    try:
        stream = soxr.ResampleStream(have, want, 1, dtype="float32")
    except (ValueError, RuntimeError) as error:
        raise EdgeLstmError(f"resampling from {have} to {want} Hz", found=str(error)) from error
    for chunk in chunks:
        yield stream.resample_chunk(chunk)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def no_blocks(what: str) -> Callable[[], Iterator[Frame]]:
    """Frames of sound of which nobody said what a frame is: an error."""

    def nothing() -> Iterator[Frame]:
        raise EdgeLstmError(
            f"{what}: how many samples a frame has",
            expected="preprocessing that says so: 'samples=512,128,16000' is 512 samples, every 128, at 16 kHz",
        )

    return nothing


def channel_of(what: str, given: str | None, channels: int) -> int | None:
    """``given`` as a channel from 0; None, the mean of all, where none is given."""
    if given is None:
        return None
    if not given.isdecimal() or int(given) >= channels:
        raise EdgeLstmError(f"{what}: channel", found=given, expected=f"0 to {channels - 1}")
    return int(given)


def mono(samples: Array, channel: int | None) -> Array:
    """Samples [channels, n] in -1..1 as float32 [n]: one channel, or the mean of all."""
    made: Array = samples.mean(0, dtype=np.float32) if channel is None else samples[channel]
    return made.astype(np.float32, copy=False)
