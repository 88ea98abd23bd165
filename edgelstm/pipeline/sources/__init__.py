"""Where frames come from. ``open_source`` finds the kind from the path."""

from __future__ import annotations

from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources import arrays, images, knmi, video
from edgelstm.pipeline.sources.source import Frame, Source

__all__ = ["KINDS", "Frame", "Source", "open_source"]

#: The sources there are, in words, for help texts and messages.
KINDS = "a folder of KNMI radar files (.h5), a folder of images, a video file, an .npy file, an .npz file (or FILE.npz:NAME)"


def open_source(spec: str, *, limit: int | None = None) -> Source:
    """Open the source at ``spec`` and give its first ``limit`` frames, or all.

    =====================  =========================================================================================
    folder with .h5 files  KNMI radar composites, uint16 [rows, columns], in order of time      ``edgelstm[radar]``
    folder with images     uint8 [H, W, 3] RGB or [H, W] grey, in natural order                 ``edgelstm[images]``
    video file             uint8 [H, W, 3] RGB                                                  ``edgelstm[video]``
    FILE.npy               array[t], axis 0 is time
    FILE.npz, or           the array NAME, else ``frames``, else the only one; several arrays of one length give
    FILE.npz:NAME          mappings, for models with several inputs
    =====================  =========================================================================================

    Raises EdgeLstmError when there is no such source or its first look (folder, header) is wrong; what is wrong with
    a frame shows when it is read.
    """
    source = _open(spec)
    return source if limit is None else source.limit(limit)


def _open(spec: str) -> Source:
    if "://" in spec or spec.startswith(("camera:", "/dev/")):
        raise EdgeLstmError(f"{spec!r}: cameras and network streams are not sources yet", expected=KINDS)
    stem, npz, key = spec.rpartition(".npz:")
    path = Path(stem + ".npz" if npz else spec)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise EdgeLstmError(f"source {path} does not exist", hint="Check the path")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return arrays.open_npz(path, key if npz else None)
    if suffix == ".npy":
        return arrays.open_npy(path)
    if suffix in video.SUFFIXES:
        return video.open_video(path)
    raise EdgeLstmError(f"source {path}", found=f"a {suffix or 'nameless'} file", expected=KINDS)


def _open_folder(folder: Path) -> Source:
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
    if radar:
        return knmi.open_knmi(folder, radar)
    if pictures:
        return images.open_images(folder, pictures)
    raise EdgeLstmError(f"source {folder}", found=f"a folder with {len(files)} other files", expected=KINDS)
