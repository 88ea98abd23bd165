"""The systems of examples/: each trains a little on data it makes, is exported, and streams what it is for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main_of(example: str) -> ModuleType:
    """``examples/<example>/main.py``, whose siblings bear the names of other examples' files."""
    sys.modules.pop("model", None)
    spec = importlib.util.spec_from_file_location(f"{example}_main", EXAMPLES / example / "main.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    path = list(sys.path)
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path[:] = path
    return loaded


def test_deep_conv_lstm(tmp_path: Path) -> None:
    """Rings give the window's numbers, sample by sample, and the network tells activities apart."""
    main = main_of("deep_conv_lstm")
    (outcome,) = main.run(tmp_path, quick=True).values()
    assert outcome.apart < 1e-5
    assert outcome.accuracy > 1.5 / len(main.ACTIVITIES)
