"""Examples in docstrings and in pages run, on models that the project ships."""

from __future__ import annotations

import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.workflows import serve

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "edgelstm").rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("examples")
    for name, example in (("model", "sensor_lstm"), ("digits", "moving_digits")):
        edgelstm.export(ROOT / "examples" / example / "model.safetensors", made / f"{name}.onnx", limit=2)
    zoo.persistence().save(made / "forecast.onnx")
    (made / "pipeline.toml").write_text(serve.example("table"), "utf-8")
    return made


@pytest.fixture
def names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dict[str, Any]]:
    """What examples take for granted: a model, its runner and stream, frames."""
    monkeypatch.chdir(folder)
    model = "forecast.onnx" if "outputs" in request.node.name else "model.onnx"
    with edgelstm.Runner.open(model) as runner:
        shape = runner.signature.inputs[0].frame_shape
        frames = [RNG.random(shape, np.float32) for _ in range(4)]
        yield {
            "edgelstm": edgelstm,
            "np": np,
            "Runner": edgelstm.Runner,
            "runner": runner,
            "stream": runner.stream("any"),
            "inputs": edgelstm.Inputs(runner.signature),
            "frame": frames[0],
            "other": frames[1],
            "raw": frames[0],
            "camera": frames,
            "f0": frames[0],
            "f1": frames[1],
            "frames": np.stack(frames[:2]),
        }


def test_they_are_found() -> None:
    assert {"edgelstm.runtime.runner", "edgelstm.pipeline.inputs", "edgelstm.pipeline.outputs"} <= set(
        MODULES
    )


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module: str, names: dict[str, Any]) -> None:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module), globs=names)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        runner.run(test, out=said.append)
    assert runner.tries, module
    assert not runner.failures, "".join(said)


def example(page: str, number: int) -> str:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(blocks[number])


def test_the_page_of_the_runner(names: dict[str, Any]) -> None:
    exec(compile(example("runner.md", 0), "runner.md", "exec"), names)


def test_the_page_of_preprocessing(names: dict[str, Any]) -> None:
    names["camera"] = [RNG.integers(0, 255, (64, 64), np.uint8) for _ in range(3)]
    exec(compile(example("preprocessing.md", 0), "preprocessing.md", "exec"), names)
    assert names["ahead"].shape == (10, 1, 64, 64)


def test_the_page_of_tables(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scales.csv").write_text("key,column,min,max\nnorth,flow,2,6\n")
    Path("forecasts.csv").write_text("stream,index,name,y[0]\nnorth,0,noon,0.25\n")
    exec(compile(example("tables.md", 0), "tables.md", "exec"), names)
    assert capsys.readouterr().out == "north noon 3.0\n"
    names["normal_errors"] = RNG.normal(size=(500, 3))
    names |= {"measured": np.full(3, 9.0), "foretold": np.zeros(3)}
    exec(compile(example("tables.md", 1), "tables.md", "exec"), names)
    assert names["alarm"]
