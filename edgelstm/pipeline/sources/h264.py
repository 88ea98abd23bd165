"""Whether H.264 video is grey: FFmpeg decodes it to YUV with flat colour, which nobody can tell from a grey scene.

Source: ITU-T H.264, 7.3.2.1.1 (sequence parameter set) and 9.1 (Exp-Golomb codes); ISO/IEC 14496-15 (avcC).
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
