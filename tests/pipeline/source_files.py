"""Files of every format that sources read, written by real encoders, and what must come out of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 48, 64
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    """A row of the table in docs/sources.md. ``expect``: the first frame, or None where the file is refused."""

    kind: str
    stored: str
    write: Callable[[Path], str]
    expect: Any
    note: str = ""
    #: Of the largest value; lossless coders are exact, and conversion of colours is rounded to the nearest or the next.
    tolerance: float = 0


def grey(bits: int) -> Any:
    """Values of all sizes, [H, W]."""
    return RNG.integers(0, 2**bits, (HEIGHT, WIDTH)).astype(np.uint8 if bits <= 8 else np.uint16)


def rgb(bits: int) -> Any:
    return RNG.integers(0, 2**bits, (HEIGHT, WIDTH, 3)).astype(np.uint8 if bits <= 8 else np.uint16)


# Video


def encode(
    path: Path,
    codec: str,
    form: str,
    planes: Sequence[Any],
    options: dict[str, str] | None = None,
    *,
    matrix: int | None = None,
    full: bool | None = None,
    frames: int = 2,
    prepare: Callable[[Any], None] | None = None,
    tag: Callable[[Any], None] | None = None,
) -> str:
    """Every frame has these ``planes``, as FFmpeg lays them out for pixel format ``form``."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, form
        context = stream.codec_context
        if matrix is not None:
            context.colorspace = matrix
        if full is not None:
            context.color_range = 2 if full else 1
        if prepare is not None:
            prepare(stream)
        for index in range(frames):
            picture = av.VideoFrame(WIDTH, HEIGHT, form)
            for plane, values in zip(picture.planes, planes, strict=True):
                rows = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
                padded = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
                padded[: len(rows), : rows.shape[1]] = rows
                plane.update(padded.tobytes())
            if matrix is not None:
                picture.colorspace = matrix
            if full is not None:
                picture.color_range = 2 if full else 1
            if tag is not None:
                tag(picture)
            picture.pts, picture.time_base = index, Fraction(1, 25)
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return str(path)


#: Weights of red and blue in luma (ITU-T H.273).
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}


def yuv(bits: int) -> list[Any]:
    """A ramp of luma with one colour, 4:2:0, in limited range and never outside RGB."""
    unit = 2 ** (bits - 8)
    dtype = np.uint8 if bits == 8 else np.uint16
    luma = 60 * unit + np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) * unit
    chroma = [np.full((HEIGHT // 2, WIDTH // 2), level * unit) for level in (140, 118)]
    return [plane.astype(dtype) for plane in (luma, *chroma)]


def from_yuv(planes: Sequence[Any], bits: int, matrix: int, full: bool) -> Any:
    """RGB by the formulas of ITU-T H.273, in float64, rounded."""
    unit, top = 2 ** (bits - 8), 2**bits - 1
    y, u, v = (np.asarray(p, np.float64) for p in planes)
    u, v = (p.repeat(2, 0).repeat(2, 1) - 128 * unit for p in (u, v))
    y = y / top if full else (y - 16 * unit) / (219 * unit)
    u, v = (p / (top if full else 224 * unit) for p in (u, v))
    red, blue = WEIGHTS[matrix]
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    out = np.clip(np.rint(np.stack([r, g, b], -1) * top), 0, top)
    return out.astype(np.uint8 if bits == 8 else np.uint16)


def video_cases() -> list[Case]:
    cases = []

    def add(
        kind: str, stored: str, name: str, codec: str, form: str, planes: Any, expect: Any, **more: Any
    ) -> None:
        note, tolerance = more.pop("note", ""), more.pop("tolerance", 0)
        cases.append(
            Case(
                kind, stored, lambda d: encode(d / name, codec, form, planes, **more), expect, note, tolerance
            )
        )

    for bits, form in ((8, "gray"), (10, "gray10le"), (12, "gray12le"), (16, "gray16le")):
        a = grey(bits)
        add("FFV1", f"grey, {bits} bits", "a.mkv", "ffv1", form, [a], a)
    for bits, form in ((8, "gray"), (10, "gray10le")):
        a = grey(bits)
        add("H.264, monochrome", f"grey, {bits} bits", "a.mp4", "libx264", form, [a], a, options={"qp": "0"})
    a = grey(10)
    lossless = {"x265-params": "lossless=1:log-level=none"}
    add("HEVC, monochrome", "grey, 10 bits", "a.mkv", "libx265", "gray10le", [a], a, options=lossless)
    a = grey(16)
    add("PNG in MOV", "grey, 16 bits", "a.mov", "png", "gray16be", [a.astype(">u2")], a)
    a = rgb(16)
    add("PNG in MOV", "RGB, 16 bits", "b.mov", "png", "rgb48be", [a.astype(">u2").reshape(HEIGHT, -1)], a)
    for bits in (10, 12, 16):
        a = rgb(bits)
        add("FFV1", f"RGB, {bits} bits", "a.mkv", "ffv1", f"gbrp{bits}le", [a[..., k] for k in (1, 2, 0)], a)
    for matrix, name in ((5, "BT.601"), (1, "BT.709"), (9, "BT.2020")):
        for full in (False, True):
            planes = yuv(8)
            add(
                "H.264",
                f"YUV, 8 bits, {name}, {'full' if full else 'limited'} range",
                "a.mp4",
                "libx264",
                "yuv420p",
                planes,
                from_yuv(planes, 8, matrix, full),
                options={"qp": "0"},
                matrix=matrix,
                full=full,
                tolerance=3 / 255,
            )
    planes = yuv(8)
    add(
        "H.264", "YUV, 8 bits, nothing said", "a.mp4", "libx264", "yuv420p", planes,
        from_yuv(planes, 8, 5, False), options={"qp": "0"}, note="as BT.601, limited range", tolerance=3 / 255,
    )  # fmt: skip
    for bits, codec, name in ((10, "libx264", "H.264"), (12, "ffv1", "FFV1")):
        for full in (False, True):
            planes = yuv(bits)
            add(
                name,
                f"YUV, {bits} bits, BT.709, {'full' if full else 'limited'} range",
                "a.mkv",
                codec,
                f"yuv420p{bits}le",
                planes,
                from_yuv(planes, bits, 1, full),
                options={"qp": "0"} if codec == "libx264" else {},
                matrix=1,
                full=full,
                tolerance=2 / (2**bits - 1),
            )
    planes = [*yuv(8), np.full((HEIGHT, WIDTH), 7, np.uint8)]
    add(
        "FFV1", "YUV with alpha, 8 bits", "a.mkv", "ffv1", "yuva420p", planes, from_yuv(planes[:3], 8, 5, False),
        note="alpha left out", tolerance=3 / 255,
    )  # fmt: skip
    for matrix, name in ((8, "YCgCo"), (10, "BT.2020 constant luminance")):
        flat = [np.full((HEIGHT, WIDTH), 100, np.uint8)] * 3
        add("FFV1", f"{name}, 8 bits", "a.mkv", "ffv1", "yuv444p", flat, None, matrix=matrix)
    add("uncompressed AVI, unnamed", "16 bits a pixel", "a.avi", "rawvideo", "gray16le", [grey(16)], None)
    return cases


# Images


def png(values: Any, colour: int, extra: bytes = b"", bits: int = 16) -> bytes:
    """A PNG of 16 bits (or grey of 4), written by hand; ``colour``: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    stored = values[:, ::2] * np.uint8(16) + values[:, 1::2] if bits == 4 else values.astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in stored)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def folder_of(folder: Path, name: str, content: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return str(folder)


def pillow(folder: Path, name: str, picture: Any, **options: Any) -> str:
    folder.mkdir(exist_ok=True)
    picture.save(folder / name, **options)
    return str(folder)


def netpbm(kind: int, values: Any, top: int) -> bytes:
    """P1 to P6. Values of PBM are bits, 1 for black."""
    height, width = values.shape[:2]
    head = f"P{kind}\n# a camera wrote this\n{width} {height}\n" + ("" if kind in (1, 4) else f"{top}\n")
    if kind < 4:
        return head.encode() + b"\n".join(b" ".join(b"%d" % v for v in row.ravel()) for row in values) + b"\n"
    if kind == 4:
        return head.encode() + np.packbits(values, axis=1).tobytes()
    return head.encode() + values.astype(np.uint8 if top < 256 else ">u2").tobytes()


def image_cases() -> list[Case]:
    import PIL.Image

    image = PIL.Image
    cases: list[Case] = []

    def add(
        kind: str,
        stored: str,
        write: Callable[[Path], str],
        expect: Any,
        note: str = "",
        tolerance: float = 0,
    ) -> None:
        cases.append(Case(kind, stored, write, expect, note, tolerance))

    a = grey(1)
    add(
        "PNG",
        "grey, 1 bit",
        lambda d: pillow(d, "a.png", image.fromarray(a * np.uint8(255)).convert("1")),
        a * np.uint8(255),
    )
    nibbles = grey(4)
    add(
        "PNG",
        "grey, 4 bits",
        lambda d: folder_of(d, "a.png", png(nibbles, 0, bits=4)),
        nibbles * np.uint8(17),
        "stretched to 8 bits, as PNG asks",
    )
    b = grey(8)
    add("PNG", "grey, 8 bits", lambda d: pillow(d, "a.png", image.fromarray(b)), b)
    c = np.stack([b, grey(8)], -1)
    add(
        "PNG",
        "grey and alpha, 8 bits",
        lambda d: pillow(d, "a.png", image.fromarray(c, "LA")),
        b,
        "alpha left out",
    )
    p = image.fromarray(rgb(8)).quantize(17)
    add(
        "PNG",
        "palette",
        lambda d: pillow(d, "a.png", p),
        np.asarray(p.convert("RGB")),
        "colours of the palette",
    )
    e = np.dstack([rgb(8), grey(8)])
    add("PNG", "RGBA, 8 bits", lambda d: pillow(d, "a.png", image.fromarray(e)), e[..., :3], "alpha left out")
    deep = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    for colour, name, count, keep in (
        (0, "grey", 1, 1),
        (4, "grey and alpha", 2, 1),
        (2, "RGB", 3, 3),
        (6, "RGBA", 4, 3),
    ):
        stored = deep[..., 0] if count == 1 else deep[..., :count]
        add(
            "PNG",
            f"{name}, 16 bits",
            lambda d, s=stored, k=colour: folder_of(d, "a.png", png(s, k)),
            deep[..., 0] if keep == 1 else deep[..., :3],
            "alpha left out" if colour & 4 else "",
        )
    for top in (1, 200, 255, 1023, 4095, 65535):
        v = RNG.integers(0, top + 1, (HEIGHT, WIDTH))
        w = RNG.integers(0, top + 1, (HEIGHT, WIDTH, 3))
        dtype = np.uint8 if top < 256 else np.uint16
        for kind, values, name in ((5, v, "PGM"), (6, w, "PPM"), (2, v, "PGM, plain"), (3, w, "PPM, plain")):
            if kind < 4 and top != 1023:
                continue
            add(
                name, f"maximum {top}", lambda d, k=kind, s=values, t=top: folder_of(d, "a.pnm", netpbm(k, s, t)),
                values.astype(dtype),
            )  # fmt: skip
    m = RNG.integers(0, 2, (HEIGHT, 61)).astype(np.uint8)
    for kind, name in ((1, "PBM, plain"), (4, "PBM")):
        add(name, "1 bit", lambda d, k=kind: folder_of(d, "a.pbm", netpbm(k, m, 1)), (1 - m) * np.uint8(255))
    s = image.fromarray(
        np.repeat(np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))[..., None], 3, -1).astype(np.uint8)
    )
    add(
        "JPEG",
        "RGB, 8 bits",
        lambda d: pillow(d, "a.jpg", s, quality=100, subsampling=0),
        np.asarray(s),
        "",
        2 / 255,
    )
    add(
        "JPEG",
        "grey, 8 bits",
        lambda d: pillow(d, "a.jpg", s.convert("L"), quality=100),
        np.asarray(s)[..., 0],
        "",
        2 / 255,
    )
    add("JPEG", "CMYK", lambda d: pillow(d, "a.jpg", s.convert("CMYK")), None)
    add("BMP", "RGB, 8 bits", lambda d: pillow(d, "a.bmp", s), np.asarray(s))
    add("WebP", "RGB, 8 bits", lambda d: pillow(d, "a.webp", s, lossless=True), np.asarray(s))
    f = s.convert("P")
    add(
        "GIF",
        "palette",
        lambda d: pillow(d, "a.gif", f),
        np.asarray(f.convert("RGB")),
        "colours of the palette",
    )
    return cases


def tiff(path: Path, values: Any, **options: Any) -> str:
    import tifffile

    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})
    return str(path)


def packed_tiff(path: Path, values: Any, bits: int) -> str:
    """One page of samples of ``bits`` each without gaps, written by hand: tifffile's packing is not in every release."""
    height, width = values.shape
    every = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)[
        :, :, 16 - bits :
    ]
    data = np.packbits(every.reshape(height, -1), axis=1).tobytes()
    # width, height, bits, no compression, black is 0, offset, samples, rows a strip, bytes
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(data)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4))
    return str(path)


def tiff_cases() -> list[Case]:
    cases: list[Case] = []

    def add(stored: str, values: Any, expect: Any, note: str = "", **options: Any) -> None:
        cases.append(Case("TIFF stack", stored, lambda d: tiff(d / "a.tif", values, **options), expect, note))

    u16 = RNG.integers(0, 65536, (3, HEIGHT, WIDTH)).astype(np.uint16)
    bits1 = u16 > 32767
    add("grey, 1 bit", bits1, bits1[0] * np.uint8(255))
    add("grey, 8 bits", (u16 >> 8).astype(np.uint8), (u16[0] >> 8).astype(np.uint8))
    for bits in (10, 12):
        few = u16[0] >> (16 - bits)
        cases.append(
            Case(
                "TIFF stack",
                f"grey, {bits} bits",
                lambda d, v=few, b=bits: packed_tiff(d / "a.tif", v, b),
                few,
            )
        )
    add("grey, 16 bits", u16, u16[0])
    add("grey, 16 bits, big-endian", u16, u16[0], byteorder=">")
    add("grey, 16 bits, white as 0", u16, 65535 - u16[0], "inverted", photometric="miniswhite")
    for name in ("lzw", "zlib", "zstd", "packbits", "jpeg2000"):
        add(f"grey, 16 bits, {name}", u16, u16[0], compression=name)
    tiled = np.tile(u16, (1, 2, 2))
    add("grey, 16 bits, tiled, zlib", tiled, tiled[0], tile=(32, 32), compression="zlib", predictor=True)
    add("grey, 16 bits, ImageJ", u16, u16[0], imagej=True, photometric=None, metadata={"axes": "TYX"})
    add(
        "grey, 16 bits, ImageJ, one page written",
        u16,
        u16[0],
        imagej=True,
        photometric=None,
        metadata={"axes": "TYX"},
        truncate=True,
    )
    add("grey, 16 bits, OME", u16, u16[0], ome=True, metadata={"axes": "TYX"})
    add("grey, 16 bits, BigTIFF", u16, u16[0], bigtiff=True)
    add("grey, 32 bits", u16.astype(np.uint32) * 65537, u16[0].astype(np.uint32) * 65537)
    signed = (u16.astype(np.int32) - 32768).astype(np.int16)
    add("grey, int16", signed, signed[0])
    for dtype in (np.float16, np.float32, np.float64):
        values = RNG.normal(size=u16.shape).astype(dtype)
        add(f"grey, {np.dtype(dtype)}", values, values[0])
    colour = RNG.integers(0, 65536, (3, HEIGHT, WIDTH, 3)).astype(np.uint16)
    alpha = np.concatenate([colour, colour[..., :1]], -1)
    add("RGB, 16 bits", colour, colour[0], photometric="rgb")
    add(
        "RGB, 16 bits, planes apart",
        np.moveaxis(colour, -1, 1),
        colour[0],
        photometric="rgb",
        planarconfig="separate",
    )
    add("RGBA, 16 bits", alpha, colour[0], "alpha left out", photometric="rgb", extrasamples=["unassalpha"])
    add(
        "RGB and infrared, 16 bits",
        alpha,
        alpha[0],
        "four channels",
        photometric="rgb",
        extrasamples=["unspecified"],
    )
    table = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    index = (u16 >> 8).astype(np.uint8)
    add(
        "palette",
        index,
        (table // 257).astype(np.uint8).T[index[0]],
        "colours of the palette",
        photometric="palette",
        colormap=table,
    )
    byte = RNG.integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    add("CMYK", byte, None, photometric="separated")
    add("CIE L*a*b*", byte[..., :3], None, photometric="cielab")
    add("raw colour pattern (CFA)", u16[0], None, photometric="cfa")
    add("channels (axis C)", u16, None, imagej=True, photometric=None, metadata={"axes": "CYX"})
    add("complex", u16.astype(np.complex64), None)
    return cases


# Radar


def radar(
    folder: Path,
    stored: Any,
    *,
    minute: int = 0,
    quantity: str = "ACCUMULATED_PRECIPITATION_[MM]",
    formula: str | None = "GEO=0.01*PV+0.0",
    outside: int = 65535,
    missing: int | None = None,
    images: int = 1,
) -> str:
    """A file as KNMI writes it, format 3.5."""
    import h5py

    folder.mkdir(exist_ok=True)
    with h5py.File(folder / f"RAD_NL25_TEST_2020010100{minute:02d}.h5", "w") as file:
        for k in range(1, images + 1):
            group = file.create_group(f"image{k}")
            group.attrs["image_geo_parameter"] = np.bytes_(quantity)
            group["image_data"] = stored + np.asarray(k - 1, stored.dtype)
            if formula is not None:
                table = group.create_group("calibration")
                table.attrs["calibration_flag"] = np.bytes_("Y")
                table.attrs["calibration_formulas"] = np.bytes_(formula)
                table.attrs["calibration_out_of_image"] = np.array([outside], np.int32)
                table.attrs["calibration_missing_data"] = np.array(
                    [outside if missing is None else missing], np.int32
                )
        overview = file.create_group("overview")
        overview.attrs["product_datetime_start"] = np.array([b"01-JAN-2020;00:00:00.000"])
        overview.attrs["product_datetime_end"] = np.array([b"01-JAN-2020;00:05:00.000"])
    return str(folder)


def radar_cases() -> list[Case]:
    mm = np.array([[0, 1, 250], [6553, 65535, 7]], np.uint16)
    tenths = np.array([[0, 100, 2500], [65530, 65535, 70]], np.uint16)
    dbz = np.array([[0, 64, 255], [254, 1, 100]], np.uint8)
    geo = dbz * np.float32(0.5) - np.float32(32)
    geo[0, 2] = np.nan
    coarse, tail = (
        np.array([[0, 1, 250], [600, 255, 7]], np.uint16),
        np.array([[0, 10, 2500], [6000, 65535, 70]], np.uint16),
    )
    fine = tenths.astype(np.float32) / 10
    fine[1, 1] = 65535
    kind = "KNMI radar"
    return [
        Case(kind, "mm, GEO=0.01*PV+0.0", lambda d: radar(d / "r", mm), mm, "counts of 0.01 mm"),
        Case(
            kind, "mm, GEO=0.1*PV, nothing at 255",
            lambda d: radar(d / "r", coarse, formula="GEO=0.1*PV", outside=255), tail, "counts of 0.01 mm",
        ),
        Case(kind, "mm, GEO=0.001*PV+0.0", lambda d: radar(d / "r", tenths, formula="GEO=0.001*PV+0.0"), fine, "counts of 0.01 mm"),
        Case(
            kind, "dBZ, GEO=0.5*PV+-32.0, nothing at 255",
            lambda d: radar(d / "r", dbz, quantity="REFLECTIVITY_[DBZ]", formula="GEO=0.5*PV+-32.0", outside=255, missing=0),
            geo, "dBZ, NaN for nothing", 1e-9,
        ),
        Case(kind, "no calibration", lambda d: radar(d / "r", mm, formula=None), mm, "as stored"),
        Case(kind, "several images", lambda d: radar(d / "r", mm, images=2), None),
        Case(kind, "several images, FOLDER:image2", lambda d: radar(d / "r", mm - mm, images=2) + ":image2", mm - mm + np.uint16(1), "counts of 0.01 mm"),
        Case(kind, "a formula of another form", lambda d: radar(d / "r", mm, formula="GEO=10^(PV/10)"), None),
    ]  # fmt: skip
