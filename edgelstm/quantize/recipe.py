"""Recipes: which sequences a calibration runs, how many frames of each, and how ranges are chosen. TOML.

::

    method = "recurrent"            # or minmax, percentile, entropy, mse
    percentile = 99.99
    streams = 8                     # sequences side by side
    preprocess = ["scale=0.0039"]   # only where the model's Signature does not say it
    hop = 1                         # only where one step takes several frames together
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
from edgelstm.quantize.ranges import check_method, check_overrides

_MAX_BYTES = 1 << 20
_KEYS = {
    "about": str,
    "method": str,
    "percentile": float,
    "streams": int,
    "preprocess": list,
    "hop": int,
    "sequence": list,
    "tensors": dict,
}
_KINDS = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    list: "a list ([[sequence]] in double brackets)",
    dict: "a table",
}


@dataclass(frozen=True)
class Span:
    """Part of a source that is one sequence: ``frames`` frames from ``start`` on; all that are left if None.

    at_most: fewer will do. hop: of windows, see :class:`edgelstm.Inputs`. skip: frames that can't be taken are none; ``start`` and ``frames`` count
    the others.
    """

    source: str
    start: int = 0
    frames: int | None = None
    at_most: bool = False
    hop: int | None = None
    skip: bool = False


@dataclass(frozen=True)
class Recipe:
    """How to calibrate; see the module's docstring for the file."""

    sequences: tuple[Span, ...] = ()
    method: str = "recurrent"
    percentile: float = 99.99
    streams: int = 8
    preprocess: tuple[str, ...] | None = None
    hop: int | None = None
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_method(self.method, self.percentile)
        check_overrides(self.tensors, {"method": self.method, "percentile": self.percentile})
        if self.streams < 1:
            raise EdgeLstmError("streams", found=self.streams, expected="at least 1")
        if self.hop is not None and self.hop < 1:
            raise EdgeLstmError("hop", found=self.hop, expected="at least 1 frame")
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
    except (ValueError, RecursionError) as error:
        raise EdgeLstmError(f"recipe {path} is not TOML", found=str(error).splitlines()[0]) from error
    where, folder = f"recipe {path}", Path(path).absolute().parent
    given = _checked(data, where, _KEYS)
    given.pop("about", None)
    spans = [
        _span(item, f"{where}: sequence {k}", folder) for k, item in enumerate(given.pop("sequence", []))
    ]
    if "preprocess" in given:
        given["preprocess"] = tuple(_typed(op, f"{where}: preprocess", str) for op in given["preprocess"])
    for pattern, settings in given.get("tensors", {}).items():
        _typed(settings, f"{where}: tensors {pattern!r}", dict)
    try:
        return Recipe(sequences=tuple(spans), **given)
    except EdgeLstmError as error:
        raise EdgeLstmError(
            f"{where}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
        ) from error


def _span(item: Any, where: str, folder: Path) -> Span:
    given = _checked(_typed(item, where, dict), where, {"source": str, "start": int, "frames": int})
    if "source" not in given:
        raise EdgeLstmError(where, found="no source", expected="source, and if need be start and frames")
    # An absolute path stays what it is.
    return Span(str(folder / given.pop("source")), **given)


def _checked(table: dict[str, Any], where: str, keys: Mapping[str, type]) -> dict[str, Any]:
    """A copy of ``table``, whose keys are among ``keys`` and whose values have their types."""
    unknown = sorted(set(table) - set(keys))
    if unknown:
        raise EdgeLstmError(where, found=f"key {unknown[0]!r}", expected=", ".join(sorted(keys)))
    return {key: _typed(value, f"{where}: {key}", keys[key]) for key, value in table.items()}


def _typed(value: Any, what: str, kind: type) -> Any:
    # What TOML calls a boolean is an int to Python, and a whole number may stand for a float.
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise EdgeLstmError(what, found=repr(value), expected=_KINDS[kind])
    return value
