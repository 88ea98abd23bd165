"""What the kernel says of a V4L2 device, which FFmpeg doesn't pass on: what it is, whether a picture waits, how its colours are meant."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError

#: Seconds for which a picture is waited for, until it is looked at whether the source was stopped.
LOOK = 0.1
_CAPTURE, _CAPTURE_PLANES, _M2M, _M2M_PLANES = 0x1, 0x1000, 0x8000, 0x4000
#: Other capabilities, in words: https://docs.kernel.org/userspace-api/media/v4l/vidioc-querycap.html
_OTHERS = {
    0x00800000: "metadata of a camera",
    0x00000002: "an output",
    0x00002000: "an output",
    0x00000050: "teletext (VBI)",
    0x00000100: "radio data (RDS)",
    0x00050000: "a radio",
    0x00100000: "a radio (SDR)",
    _M2M | _M2M_PLANES: "a converter",
}
_HINT = "`v4l2-ctl --list-devices`: a camera often has several nodes, of which the first gives pictures"
#: To the numbers of ITU-T H.273: matrices by ycbcr_enc, and where that says nothing, by colorspace.
_BY_ENCODING = {1: 6, 2: 1, 3: 6, 4: 1, 5: 6, 6: 9, 7: 10, 8: 7}
_BY_COLOURS = {2: 7, 3: 1, 10: 9, 12: 1}
_JPEG, _RAW = 7, 11
LIMITED, _FULL = 1, 2
_BY_RANGE = {1: _FULL, 2: LIMITED}


def _number(direction: int, number: int, size: int) -> int:
    """An ioctl of V4L2, as `_IOR` and `_IOWR` of <linux/ioctl.h> make it on Arm and x86."""
    return direction << 30 | size << 16 | ord("V") << 8 | number


#: struct v4l2_format: its union begins where a pointer may, and is of 200 bytes.
_BEGIN = ctypes.alignment(ctypes.c_void_p)
_QUERYCAP, _G_FMT = _number(2, 0, 104), _number(3, 4, _BEGIN + 200)


def check(path: str) -> None:
    """Raise EdgeLstmError where ``path`` is no device that pictures can be read from."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hints = {
            errno.EACCES: "Users of the group video may, as a rule; `ls -l` says who",
            errno.EPERM: "The service's unit, or the container, lets no such device in: of systemd, DeviceAllow=char-video4linux rw",
        }
        raise EdgeLstmError(
            f"camera {path} can't be opened", found=error.strerror, hint=hints.get(error.errno or 0)
        ) from None
    import fcntl  # not on Windows

    try:
        answer = bytearray(104)
        fcntl.ioctl(file, _QUERYCAP, answer)
    except OSError:
        raise EdgeLstmError(f"{path} is no camera", found="not a V4L2 device", hint=_HINT) from None
    finally:
        os.close(file)
    every, own = struct.unpack_from("II", answer, 84)
    able = own if every & 0x80000000 else every
    if able & _CAPTURE:
        return
    if able & _CAPTURE_PLANES:
        raise EdgeLstmError(
            f"camera {path}",
            found="a device of the multi-planar interface, which FFmpeg does not read",
            hint=f"By GStreamer: gst:v4l2src device={path} ! videoconvert",
        )
    found = next((words for bits, words in _OTHERS.items() if able & bits), "no capture of pictures")
    raise EdgeLstmError(f"{path} is no camera", found=found, hint=_HINT)


class OpenDevice:
    """A device that FFmpeg has opened in this process since ``before``, a set of file descriptors of it."""

    def __init__(self, path: str, before: set[int]) -> None:
        self._file = max(descriptors(path) - before, default=None)

    def wait(self) -> None:
        """Until a picture waits, or an error does; for :data:`LOOK` at most."""
        if self._file is None:
            time.sleep(0.005)
            return
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        poll.poll(LOOK * 1000)

    def _form(self) -> bytearray | None:
        """struct v4l2_format of what it captures."""
        if self._file is None:
            return None
        import fcntl  # not on Windows

        form = bytearray(_BEGIN + 200)
        struct.pack_into("I", form, 0, 1)
        try:
            fcntl.ioctl(self._file, _G_FMT, form)
        except OSError:
            return None
        return form

    def size(self) -> str | None:
        """WIDTHxHEIGHT."""
        form = self._form()
        return None if form is None else "{}x{}".format(*struct.unpack_from("II", form, _BEGIN))

    def row_bytes(self) -> int | None:
        """From one row of a raw picture to the next; 0 or None where the driver doesn't say."""
        form = self._form()
        return None if form is None else int(struct.unpack_from("I", form, _BEGIN + 16)[0])

    def colours(self, rgb: bool) -> tuple[int, int] | None:
        """(matrix, range) of raw pictures, in RGB or not, by ITU-T H.273; None where the driver doesn't say."""
        form = self._form()
        if form is None:
            return None
        colours, _, _, encoding, quantization = struct.unpack_from("5I", form, _BEGIN + 24)
        if colours in (0, _RAW):
            return None
        default = _FULL if rgb or colours == _JPEG else LIMITED
        return _BY_ENCODING.get(encoding) or _BY_COLOURS.get(colours, 6), _BY_RANGE.get(quantization, default)


def descriptors(path: str) -> set[int]:
    """File descriptors of this process that are the device at ``path``."""
    found = set()
    with suppress(OSError):
        device = Path(path).stat()
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if os.path.samestat(entry.stat(), device):
                    found.add(int(entry.name))
    return found


def mappings(path: str) -> set[tuple[int, int]]:
    """(address, bytes) of the device's memory that this process sees."""
    found = set()
    with suppress(OSError):
        real = os.path.realpath(path)
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == real:
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                found.add((begin, end - begin))
    return found


def release(mapped: set[tuple[int, int]]) -> None:
    """What FFmpeg leaves mapped where a device doesn't begin to stream: it would be busy for as long as the process lives."""
    libc = ctypes.CDLL(None)
    for begin, size in mapped:
        libc.munmap(ctypes.c_void_p(begin), ctypes.c_size_t(size))


def own_copy(av: Any, packet: Any) -> Any:
    """``packet`` in memory of its own.

    FFmpeg hands out the driver's memory: what is read of it later may be the next picture, and what is freed after the device was
    closed crashes the process.
    """
    copy = av.Packet(packet.size)
    copy.update(packet)
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    return copy
