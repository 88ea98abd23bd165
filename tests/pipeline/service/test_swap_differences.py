"""What keeps another file from taking over: weights of one output, one stream, one number; not another precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgelstm
import zoo
from edgelstm import EdgeLstmError
from edgelstm.graph.step import StepModel

pytest.importorskip("pydantic")

from edgelstm.pipeline.service.swap import Difference
from running import Running, until

Array = np.ndarray[Any, Any]
STREAMS = "abcd"
STREAM = '[streams.{0}]\nmodel = "m"\nsource = "{0}.npy"\nsink = "{0}.jsonl"\nrate = 200\n'


def edited(name: str, change: Callable[[Array], None]) -> StepModel:
    step = zoo.lstm()
    model = onnx.ModelProto()
    model.ParseFromString(step.to_bytes())
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return StepModel(model, step.signature)


def other_sign(head: Array) -> None:
    head[:, 1] *= -1


def one_weight(head: Array) -> None:
    head[2, 0] += 30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    zoo.lstm().save(folder / "float.onnx")
    edited("head.w", other_sign).save(folder / "sign.onnx")
    edited("head.w", one_weight).save(folder / "weight.onnx")
    np.save(folder / "seen.npy", np.random.default_rng(5).normal(size=(60, 3)).astype(np.float32))
    edgelstm.calibrate(folder / "float.onnx", str(folder / "seen.npy"), folder / "m.calib.json")
    edgelstm.quantize(folder / "float.onnx", folder / "m.calib.json", folder / "int8.onnx")
    return folder


def test_weights_of_an_output_are_refused_and_another_precision_is_not(models: Path, tmp_path: Path) -> None:
    """Their states are the same to the bit."""
    rng = np.random.default_rng(1)
    for name in STREAMS:
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(600, 3)).astype(np.float32))
    text = '[models.m]\npath = "{}"\n'.format(models / "float.onnx") + "".join(map(STREAM.format, STREAMS))
    with Running(text, tmp_path) as running:
        until(lambda: all(running.count(name, "stepped") > 20 for name in STREAMS))
        for name in STREAMS:
            running.control.pause(name)
        for file in ("sign", "weight"):
            with pytest.raises(
                EdgeLstmError, match=r"states may mean something else: found output y: .* differs by"
            ):
                running.pipeline.swap("m", models / f"{file}.onnx")
        running.pipeline.swap("m", models / "int8.onnx")
        for name in STREAMS:
            running.control.resume(name)
        report = running.ends()
    assert not report.failed


def streams(count: int = 8) -> list[dict[tuple[str, str], tuple[Array, Array]]]:
    """What int8 makes of it, about."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(count):
        values = {("state", "h"): rng.normal(size=40), ("state", "c"): 5 * rng.normal(size=40), ("output", "y"): rng.normal(size=3)}  # fmt: skip
        made.append(
            {k: (v, v + 0.05 * np.abs(v).max() * rng.normal(size=v.shape)) for k, v in values.items()}
        )
    return made


def worst(pairs: list[dict[tuple[str, str], tuple[Array, Array]]], kind: str, name: str) -> tuple[int, int]:
    _, one, place = max(
        (abs(v), k, i) for k, found in enumerate(pairs) for i, v in enumerate(found[kind, name][0])
    )
    return one, place


@pytest.mark.parametrize(
    ("key", "said"),
    [(("output", "y"), "output y: "), (("state", "h"), "state h: "), (("state", "c"), "state")],
)
def test_one_number_of_one_stream_tells(key: tuple[str, str], said: str) -> None:
    pairs = streams()
    assert Difference(pairs).trouble() is None
    one, place = worst(pairs, *key)
    pairs[one][key][1][place] *= -1
    assert re.search(said, str(Difference(pairs).trouble()))
    pairs[one][key][1][place] = np.nan
    assert Difference(pairs).trouble() is not None


def test_one_stream_tells() -> None:
    pairs = streams()
    for old, new in pairs[5].values():
        new[:] = 0.57 * old
    assert "a stream whose states differ by 0.43" in str(Difference(pairs).trouble())


def test_what_is_nearly_nothing_does_not() -> None:
    """A probability of 0.001 that becomes 0.002; what is NaN in both."""
    pairs = streams(2)
    pairs[0]["output", "p"] = (np.float64([0.001, 0.002]), np.float64([0.003, 0.001]))
    assert Difference(pairs).trouble() is None
    pairs[0]["output", "p"][1][1] = 0.4
    assert "output p" in str(Difference(pairs).trouble())
