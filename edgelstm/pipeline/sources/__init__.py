"""Where frames come from. ``open_source`` finds the kind from the path."""

from __future__ import annotations

from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources import arrays, images, knmi, video
from edgelstm.pipeline.sources.folder import Follow
from edgelstm.pipeline.sources.source import Frame, Source

__all__ = ["KINDS", "Frame", "Source", "open_source"]

#: The sources there are, in words, for help texts and messages.
KINDS = (
    "a folder of KNMI radar files (.h5), a folder of images, a TIFF stack, an animation (.gif, .webp, .png), a video file, "
    "an .npy file, an .npz file (or FILE.npz:NAME)"
)


def open_source(
    spec: str, *, limit: int | None = None, follow: bool = False, idle: float | None = None
) -> Source:
    """Open the source at ``spec`` and give its first ``limit`` frames, or all.

    =====================  =========================================================================================
    folder with .h5 files  KNMI radar composites [rows, columns], in order of time              ``edgelstm[radar]``
    FOLDER:image2          one of several images in each of those files
    folder with images     [H, W, 3] RGB or [H, W] grey, in natural order                       ``edgelstm[images]``
    TIFF, GIF, WebP, PNG   the pages of a stack, the pictures of an animation, or one frame      ``edgelstm[images]``
    video file             [H, W, 3] RGB or [H, W] grey                                         ``edgelstm[video]``
    FILE.mkv:1             one of several videos in a file, counted from 0
    FILE.npy               array[t], axis 0 is time
    FILE.npz, or           the array NAME, else ``frames``, else the only one; several arrays of one length give
    FILE.npz:NAME          mappings, for models with several inputs
    =====================  =========================================================================================

    ``follow`` a folder: wait for further files, for ``idle`` seconds after the last one or (None) for ever.

    Values are those of the file, in its depth, uint8 to 8 bits and uint16 above; images and video are upright as the file
    says. ``Source.said`` tells what was done, ``docs/sources.md`` what each format becomes.

    Raises EdgeLstmError when there is no such source or its first look (folder, header, first frame) is wrong; what is
    wrong with a later frame shows when it is read.
    """
    source = _open(spec, Follow(follow, idle))
    return source if limit is None else source.limit(limit)


def _open(spec: str, follow: Follow) -> Source:
    if "://" in spec or spec.startswith(("camera:", "/dev/")):
        raise EdgeLstmError(f"{spec!r}: cameras and network streams are not sources yet", expected=KINDS)
    path, key, chosen = Path(spec), "", False
    if not path.exists() and ":" in spec:
        stem, _, key = spec.rpartition(":")
        path, chosen = Path(stem), True
    if path.is_dir():
        return _open_folder(path, key if chosen else None, follow)
    if not path.is_file():
        raise EdgeLstmError(f"source {spec if chosen else path} does not exist", hint="Check the path")
    if follow.on:
        raise EdgeLstmError(
            f"follow: source {path}", found="a file", expected="a folder that further files come into"
        )
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return arrays.open_npz(path, key if chosen else None)
    if suffix == ".npy":
        return arrays.open_npy(path)
    if suffix in video.SUFFIXES:
        return video.open_video(path, key if chosen else None)
    if suffix in images.SUFFIXES and not chosen:
        return images.open_image(path)
    raise EdgeLstmError(f"source {path}", found=f"a {suffix or 'nameless'} file", expected=KINDS)


def _open_folder(folder: Path, key: str | None, follow: Follow) -> Source:
    try:
        files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    except OSError as error:
        raise EdgeLstmError(f"can't read folder {folder}", found=error.strerror) from error
    radar = [p for p in files if p.suffix.lower() in knmi.SUFFIXES]
    pictures = [p for p in files if p.suffix.lower() in images.SUFFIXES]
    if radar and pictures:
        raise EdgeLstmError(
            f"source {folder}",
            found=f"{len(radar)} radar files and {len(pictures)} images",
            expected="one kind in a folder",
        )
    if key is not None and not radar:
        raise EdgeLstmError(
            f"source {folder}:{key}", found="a folder without radar files", expected="FOLDER:image2 of those"
        )
    if radar:
        return knmi.open_knmi(folder, radar, key, follow)
    if pictures:
        return images.open_images(
            folder, pictures, [p for p in files if p.suffix.lower() not in images.SUFFIXES], follow
        )
    raise EdgeLstmError(f"source {folder}", found=f"a folder with {len(files)} other files", expected=KINDS)
