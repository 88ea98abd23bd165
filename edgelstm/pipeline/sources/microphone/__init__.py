"""A microphone, by PyAV: ALSA's devices on Linux, those of PulseAudio and PipeWire among them."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Place
from edgelstm.pipeline.sources.address import TIMES, Address, split_fragment
from edgelstm.pipeline.sources.audio import reason
from edgelstm.pipeline.sources.clock import CaptureClock, utc
from edgelstm.pipeline.sources.sound import blocks, channel_of, mono, no_blocks
from edgelstm.pipeline.sources.source import Array, Frame, Source

PREFIXES = ("mic:",)
OPTIONS = ("rate", "channels", "channel", *TIMES)
#: Where distributions keep ALSA's configuration. PyAV's wheels bring a library of their own, which looks where it was built and so
#: knows no device at all.
ALSA_FOLDERS = ("/usr/share/alsa", "/usr/local/share/alsa")
#: Time stamps of the device that are ahead of its samples by so many seconds: samples were lost.
LOST = 0.1


@dataclass(frozen=True)
class _Device:
    """What is opened. rate: in Hz; channels: that are recorded; channel: which of them, None for their mean."""

    av: Any
    name: str
    rate: int
    channels: int
    channel: int | None
    timeouts: tuple[float, float]

    def open(self) -> Any:
        """PyAV's container. ALSA takes the rate that lies next to the one that was asked for: :func:`_rate_of` tells."""
        options = {"sample_rate": str(self.rate), "channels": str(self.channels)}
        _find_configuration()
        try:
            return self.av.open(self.name, format="alsa", options=options, timeout=self.timeouts)
        except (self.av.error.FFmpegError, OSError, ValueError) as error:
            raise EdgeLstmError(
                f"microphone {self.name} can't be opened",
                found=_why(self.name) or reason(error),
                expected=f"a device of `arecord -L` that records {count_of(self.channels, 'channel')} at {self.rate} Hz",
                hint="Names that PulseAudio or PipeWire stand behind need their plugin: try the card itself, mic:hw:1,0 (`arecord -l`)",
            ) from None


def _why(name: str, cards: Path = Path("/proc/asound"), nodes: Path = Path("/dev/snd")) -> str | None:
    """What is wrong with ``hw:CARD,DEVICE`` by the kernel's own word: ALSA's error is the same for all. None where it says nothing."""
    match = re.fullmatch(r"(?:plug)?hw:(?:CARD=)?(\w+)(?:,(?:DEV=)?(\d+))?(?:,(?:SUBDEV=)?(\d+))?", name)
    if match is None or not cards.is_dir():
        return None
    card, device, part = match[1], match[2] or "0", match[3] or "*"
    here = cards / (f"card{card}" if card.isdecimal() else card)
    if not here.is_dir():
        there = ", ".join(sorted((folder / "id").read_text().strip() for folder in cards.glob("card[0-9]*")))
        return f"no card {card}" + (f"; there is {there}" if there else ", and no other")
    states = [file.read_text() for file in here.glob(f"pcm{device}c/sub{part}/status")]
    if not states:
        return f"card {card} has no device {device}{'' if part == '*' else ',' + part} that records"
    if all("closed" not in state for state in states):
        owners = sorted(set(re.findall(r"owner_pid\s*:\s*(\d+)", "".join(states))))
        return "in use" + (f" by process {', '.join(owners)}" if owners else "")
    try:
        os.close(
            os.open(nodes / f"controlC{here.resolve().name.removeprefix('card')}", os.O_RDONLY | os.O_CLOEXEC)
        )
    except PermissionError as error:
        return f"{error.strerror} (of the group audio; by a service's unit: DeviceAllow=char-alsa rw)"
    except OSError:
        pass  # nothing of which more is known than ALSA's error says
    return None


def _find_configuration() -> None:
    """Tell ALSA's library where the system's configuration lies, unless the environment does."""
    if {"ALSA_CONFIG_DIR", "ALSA_CONFIG_PATH"} & os.environ.keys():
        return
    for folder in ALSA_FOLDERS:
        if (Path(folder) / "alsa.conf").is_file():
            os.environ["ALSA_CONFIG_DIR"] = folder
            return


def open_microphone(spec: str) -> Source:
    """``mic:default``, ``mic:hw:1,0``, with ``#rate=16000&channels=1&channel=0``: blocks as the model's preprocessing cuts them.

    It is opened for a moment to see that it is there. Times are the machine's UTC clock: counted in samples, from where they came the
    quickest. Samples that the machine was too slow for are said as a gap.
    """
    name, options = split_fragment(spec.partition(":")[2], OPTIONS, spec.partition("#")[0])
    what = f"microphone {name}"
    if not re.fullmatch(r"[\w:,.={}-]+", name):
        raise EdgeLstmError(
            what, found=name or "no name", expected="mic:default, or mic:NAME of `arecord -L`"
        )
    av = require("av", "video", f"reading {what}")
    rate, channels = (_number(what, k, options.get(k, d)) for k, d in (("rate", "16000"), ("channels", "1")))
    channel = channel_of(what, options.get("channel"), channels)
    device = _Device(av, name, rate, channels, channel, Address(name, what, options).timeouts)
    with device.open() as container:
        has = _rate_of(container)
    if has != rate and "rate" in options:
        raise EdgeLstmError(f"{what}: rate", found=f"{has} Hz", expected=f"{rate} Hz", hint=f"#rate={has}")
    rate, device = has, replace(device, rate=has)

    def reframe(length: int, hop: int, wanted: int | None) -> Source:
        wanted = wanted or rate
        said = [f"{rate} Hz, {count_of(channels, 'channel')}"]
        if wanted != rate:
            require("soxr", "audio", f"resampling {what}")
            said.append(f"resampled to {wanted} Hz")
        stopped = threading.Event()
        start = time.time()
        return Source(
            what,
            lambda: _frames(device, length, hop, wanted, start, stopped),
            fps=wanted / hop,
            said=tuple(said),
            live=True,
            place=Place(datetime.fromtimestamp(start, timezone.utc)),
            stopped=stopped,
        )

    return Source(what, no_blocks(what), reframe=reframe, live=True)


def _rate_of(container: Any) -> int:
    return int(container.streams.audio[0].rate)


def _number(what: str, name: str, text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) < 8 else 0
    most = 64 if name == "channels" else 768000
    if not 1 <= value <= most:
        raise EdgeLstmError(f"{what}: {name}", found=text, expected=f"1 to {most}")
    return value


class _Recording:
    """An open device: chunks of samples, and when they were taken."""

    def __init__(self, device: _Device, stopped: threading.Event) -> None:
        self._device, self._stopped = device, stopped
        self._clock = CaptureClock()
        #: Samples of the device, those that were lost among them; and those that were given on.
        self._count = self._given = 0
        self._expected: float | None = None
        #: When sample 0 would have been taken if the newest one is in its place, in seconds since 1970; and what was lost or set since it was asked.
        self.start = 0.0
        self.note: str | None = None

    def chunks(self) -> Iterator[Array]:
        """Until it is stopped; the device is closed by who reads. EdgeLstmError when it fails."""
        device = self._device
        container = device.open()
        planar = device.av.AudioResampler(format="fltp")
        try:
            if (has := _rate_of(container)) != device.rate:
                raise EdgeLstmError(
                    f"microphone {device.name}: another rate than before",
                    found=f"{has} Hz",
                    expected=f"{device.rate} Hz",
                )
            for packet in container.demux(audio=0):
                came = time.monotonic()
                for frame in packet.decode():
                    if self._stopped.is_set():
                        return
                    self._look(frame, came)
                    for part in planar.resample(frame):
                        yield mono(part.to_ndarray(), device.channel)
            raise EdgeLstmError(f"microphone {device.name}: the recording ended", expected="one that goes on")
        except (device.av.error.FFmpegError, OSError, ValueError) as error:
            found = reason(error)
            if isinstance(error, device.av.error.ExitError):
                found = f"nothing came for {device.timeouts[1]:g} s"
            raise EdgeLstmError(f"microphone {device.name} is lost", found=found) from None
        finally:
            container.close()

    def _look(self, frame: Any, came: float) -> None:
        """Take down when ``frame`` was taken, and whether samples are missing before it."""
        taken = frame.time
        if taken is not None and self._expected is not None and taken - self._expected > LOST:
            lost = taken - self._expected
            self.note = f"{lost:.2f} s of sound were lost"
            self._count += round(lost * self._device.rate)
        self._count += frame.samples
        self._given += frame.samples
        if taken is not None:
            self._expected = taken + frame.samples / self._device.rate
        sent = self._count / self._device.rate
        stamp, note = self._clock.stamp(sent, came)
        self.start, self.note = stamp - self._given / self._device.rate, note or self.note


def _frames(
    device: _Device, length: int, hop: int, rate: int, start: float, stopped: threading.Event
) -> Iterator[Frame]:
    recording = _Recording(device, stopped)
    for frame in blocks(recording.chunks(), device.rate, length, hop, rate):
        end = recording.start + (frame.index + 1) * hop / rate
        gap, recording.note = recording.note, None
        yield replace(frame, time=end - start, name=utc(end), gap=gap)
