"""What FFmpeg does not tell of H.264 video: that it is grey (it decodes it to YUV with flat colour, which nobody can tell from a grey scene), and that
pictures are missing (it goes on with what it has, and the pictures are wrong until the next key frame).

Source: ITU-T H.264, 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header), 7.4.3 (frame_num) and 9.1 (Exp-Golomb codes); ISO/IEC 14496-15
(avcC).
"""

from __future__ import annotations

#: Profiles whose parameter set says which colour format it is; all others are 4:2:0.
_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


def is_grey(extradata: bytes, packet: bytes) -> bool:
    """Whether the sequence parameter set, in a stream's ``extradata`` or its first ``packet``, says 4:0:0."""
    for data in (extradata, packet):
        parameters = _parameters(data)
        if parameters is not None:
            return _colour_format(parameters) == 0
    return False


class FrameNumbers:
    """Counts the pictures that others refer to, as their slices number them. extradata: of the stream, parameter sets with start codes or as avcC."""

    def __init__(self, extradata: bytes = b"") -> None:
        #: Of every parameter set: bits of a number, None where numbers may be left out, and whether colour planes are coded apart.
        self._sets: dict[int, tuple[int | None, bool]] = {}
        self._last: int | None = None
        #: Bytes of a unit's length, 0 for start codes.
        self._prefix = 0
        if extradata[:1] == b"\x01" and len(extradata) > 8:
            self._prefix = (extradata[4] & 3) + 1
            self._read_parameters(extradata[9 : 8 + int.from_bytes(extradata[6:8], "big")])
        else:
            self.missing(extradata)

    def missing(self, packet: bytes) -> bool:
        """Whether a picture that later ones refer to is missing before those of ``packet``; False where that can't be told."""
        found = False
        for unit in self._units(packet):
            kind = unit[0] & 31 if unit else 0
            if kind == 7:
                self._read_parameters(unit[1:])
            elif kind in (1, 5) and (form := self._form()) is not None:
                size, planes = form
                bits = _Bits(unit[1:64])
                if bits.golomb():  # not the first slice of its picture
                    continue
                bits.golomb(), bits.golomb()  # type of the slice, its picture parameters
                if planes:
                    bits.take(2)
                number = bits.take(size)
                if kind == 5:
                    self._last = 0
                elif self._last is not None and number not in (
                    self._last,
                    (self._last + 1) % (1 << size),
                ):
                    found = True
                if unit[0] & 0x60 and kind == 1:
                    self._last = number
        return found

    def _form(self) -> tuple[int, bool] | None:
        """What all parameter sets say; nothing where they say different things, for which of them holds is not looked up."""
        if len(forms := set(self._sets.values())) != 1:
            return None
        size, planes = next(iter(forms))
        return None if size is None else (size, planes)

    def _units(self, packet: bytes) -> list[bytes]:
        if not self._prefix:
            return packet.split(b"\0\0\1")[1:]
        units, place = [], 0
        while place + self._prefix < len(packet):
            length = int.from_bytes(packet[place : place + self._prefix], "big")
            place += self._prefix
            units.append(packet[place : place + min(length, 64)])
            place += length
        return units

    def _read_parameters(self, data: bytes) -> None:
        bits = _Bits(data[:512])
        profile = bits.take(8)
        bits.take(16)
        identity, planes = bits.golomb(), False
        if profile in _PROFILES:
            chroma = bits.golomb()
            planes = chroma == 3 and bool(bits.take(1))
            bits.golomb(), bits.golomb(), bits.take(1)
            if bits.take(1):  # scaling lists
                for k in range(12 if chroma == 3 else 8):
                    if bits.take(1):
                        _skip_scaling(bits, 16 if k < 6 else 64)
        size = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1), bits.golomb(), bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb()  # how many pictures may be referred to
        gaps_allowed = bits.take(1)
        if not bits.is_over and len(self._sets) < 32:
            self._sets[identity] = size if size <= 16 and not gaps_allowed else None, planes


class _Bits:
    """Bits of a unit, one after the other; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        plain = data.replace(b"\0\0\3", b"\0\0")  # bytes that keep a start code from showing up
        self._value, self._left = int.from_bytes(plain, "big"), 8 * len(plain)

    @property
    def is_over(self) -> bool:
        """More was taken than there is."""
        return self._left < 0

    def take(self, count: int) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & ((1 << count) - 1)

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code; of a signed one, its number."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                return 0
        return (1 << zeros) - 1 + self.take(zeros)


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            delta = (code + 1) // 2 if code % 2 else -(code // 2)
            following = (last + delta + 256) % 256
        last = following or last


def _parameters(data: bytes) -> bytes | None:
    """The first sequence parameter set, from its profile on."""
    if data[:1] == b"\x01" and len(data) > 8:  # avcC: the set's length in bytes 6 and 7
        return data[9 : 8 + int.from_bytes(data[6:8], "big")]
    for unit in data.split(b"\0\0\1")[1:]:
        if unit and unit[0] & 31 == 7:
            return unit[1:]
    return None


def _colour_format(parameters: bytes) -> int:
    """0 grey, 1 4:2:0, 2 4:2:2, 3 4:4:4."""
    if len(parameters) < 5 or parameters[0] not in _PROFILES:
        return 1
    plain = parameters.replace(b"\0\0\3", b"\0\0")  # bytes that keep a start code from showing up
    bits = "".join(f"{byte:08b}" for byte in plain[3:24])
    _, bits = _exp_golomb(bits)  # which set it is
    return _exp_golomb(bits)[0]


def _exp_golomb(bits: str) -> tuple[int, str]:
    zeros = len(bits) - len(bits.lstrip("0"))
    end = 2 * zeros + 1
    return int(bits[zeros:end] or "1", 2) - 1, bits[end:]
