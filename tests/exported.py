"""Models of the examples, exported once: the other workers of pytest-xdist wait for it and take it, and so does the next run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import building
import edgelstm
from edgelstm.engine.native_build import files_hash


@cache
def exported(name: str) -> Path:
    """The step graph of ``examples/NAME``, of these sources of ours. Nobody writes to it."""
    weights = building.ROOT / "examples" / name / "model.safetensors"
    digest = files_hash([*(building.ROOT / "edgelstm").rglob("*.py"), weights])
    path = building.ROOT / "build" / "exported-tests" / digest[:16] / f"{name}.onnx"
    with building.alone(path):
        if not path.is_file():
            edgelstm.export(str(weights), path, limit=2, threads=1)
    return path
