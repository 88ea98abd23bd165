"""Recipes: which sequences a calibration runs, how many frames of each, and how ranges are chosen. TOML.

::

    method = "recurrent"            # or minmax, percentile, entropy, mse
    percentile = 99.99
    streams = 8                     # sequences side by side
    preprocess = ["scale=0.0039"]   # only where the model's Signature does not say it
    [[sequence]]
    source = "recordings/morning.npz:frames"   # as `edgelstm run` takes it, from this file's folder on
    start = 0
    frames = 200
    [tensors."*/z"]                 # what is different for some tensors
    method = "percentile"
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.ranges import check_method, check_overrides

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Span:
    """Part of a source that is one sequence: ``frames`` frames from ``start`` on; all that are left if None."""

    source: str
    start: int = 0
    frames: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How to calibrate; see the module's docstring for the file."""

    sequences: tuple[Span, ...] = ()
    method: str = "recurrent"
    percentile: float = 99.99
    streams: int = 8
    preprocess: tuple[str, ...] | None = None
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_method(self.method, self.percentile)
        check_overrides(self.tensors, {"method": self.method, "percentile": self.percentile})
        if self.streams < 1:
            raise EdgeLstmError("streams", found=self.streams, expected="at least 1")
        for span in self.sequences:
            if span.start < 0 or (span.frames is not None and span.frames < 1):
                raise EdgeLstmError(
                    f"sequence of {span.source}",
                    found=f"start {span.start}, frames {span.frames}",
                    expected="start at least 0, frames at least 1",
                )


def load_recipe(path: PathLike) -> Recipe:
    """Read a recipe. Raises EdgeLstmError for anything that is none, naming the file and the key."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(read_bytes(path, limit=_MAX_BYTES).decode())
    except ValueError as error:
        raise EdgeLstmError(f"recipe {path} is not TOML", found=str(error)) from error
    known = {"sequence", "method", "percentile", "streams", "preprocess", "tensors", "about"}
    if set(data) - known:
        raise EdgeLstmError(
            f"recipe {path}", found=f"key {sorted(set(data) - known)[0]!r}", expected=", ".join(sorted(known))
        )
    folder = Path(path).absolute().parent
    try:
        return Recipe(
            sequences=tuple(_span(item, folder) for item in data.get("sequence", ())),
            method=str(data.get("method", "recurrent")),
            percentile=float(data.get("percentile", 99.99)),
            streams=int(data.get("streams", 8)),
            preprocess=tuple(map(str, data["preprocess"])) if "preprocess" in data else None,
            tensors={str(k): dict(v) for k, v in data.get("tensors", {}).items()},
        )
    except EdgeLstmError as error:
        raise EdgeLstmError(
            f"recipe {path}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EdgeLstmError(
            f"recipe {path} is malformed",
            found=f"{type(error).__name__} {error}",
            expected="[[sequence]] tables with source, start, frames",
        ) from error


def _span(item: Mapping[str, Any], folder: Path) -> Span:
    unknown = set(item) - {"source", "start", "frames"}
    if unknown:
        raise EdgeLstmError("sequence", found=f"key {sorted(unknown)[0]!r}", expected="source, start, frames")
    source = str(item["source"])
    frames = item.get("frames")
    place = source if Path(source).is_absolute() else str(folder / source)
    return Span(place, int(item.get("start", 0)), None if frames is None else int(frames))
