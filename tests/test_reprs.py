"""What Python shows of a public object is a line: nobody wants 4,000 numbers for asking what a thing is."""

from __future__ import annotations

from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.graph.signature import StateSpec
from edgelstm.runtime.sidecar import Sidecar

LONGEST = 300


def test_every_public_object_and_what_it_gives_is_shown_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    zoo.lstm(inputs=9, hidden=(5,) * 9, head=9).save("m.onnx")
    zoo.persistence(leads=12, shape=(1, 4, 4)).save("p.onnx")
    np.save("x.npy", rng.normal(size=(80, 9)).astype(np.float32))
    np.save("p.npy", rng.uniform(size=(30, 1, 4, 4)).astype(np.float32))
    Path("t.toml").write_text(
        "[models.m]\npath='m.onnx'\n[streams.a]\nsource='x.npy'\nsink='y.jsonl'\n", encoding="utf-8"
    )
    exported = edgelstm.export("m.onnx", limit=10, threads=1)
    calibrated = edgelstm.calibrate("m.onnx", "x.npy", threads=1)
    fitted = edgelstm.fit_detector("m.onnx", "x.npy", target="next", method="mahalanobis", threads=1)
    pipeline = edgelstm.Pipeline.from_file("t.toml")
    specs = [f"s{k}={'x.npy'}" for k in range(20)]
    with edgelstm.Runner.open("m.onnx", streams=30, threads=1) as runner:
        streams = [runner.stream(f"stream {k}") for k in range(30)]
        shown = [
            *(runner, streams[0], streams[0].snapshot(), runner.signature, runner.signature.inputs[0]),
            *(edgelstm.Inputs(runner.signature), edgelstm.Outputs(runner.signature)),
            StateSpec("h", "h", "n", "float32", ("N", 5000), initial=np.ones(5000, np.float32).tobytes()),
            Sidecar(runner.signature, "tensorrt", "10.3", options={"a": "b" * 500}),
            *(exported, exported.step, exported.comparison, exported.proof),
            *(calibrated, calibrated.calibration, fitted),
            edgelstm.quantize("m.onnx", calibrated.calibration, threads=1),
            edgelstm.detect("m.onnx", fitted, "x.npy", threads=1),
            edgelstm.run("m.onnx", specs, threads=1),
            edgelstm.score("p.onnx", "p.npy", threads=1),
            edgelstm.verify("m.onnx", "m.onnx", limit=20, threads=1),
            *(edgelstm.inspect("m.onnx"), edgelstm.lower("m.onnx")),
            edgelstm.report("p.onnx", "p.npy", "r.html", limit=20, threads=1),
            *(pipeline, pipeline.check(), pipeline.run()),
        ]
        texts = [repr(value) for value in shown]
    texts.append(repr(runner))
    public = [getattr(edgelstm, name) for name in edgelstm.__all__ if name != "nn"]
    classes = {c for c in public if isinstance(c, type) and not issubclass(c, Exception)}
    assert classes <= {type(value) for value in shown}, "an object of every public class is looked at"
    texts += [repr(value) for value in public if isinstance(value, type | FunctionType | ModuleType)]
    for text in texts:
        assert len(text) <= LONGEST, text
        assert "\n" not in text
        assert " object at 0x" not in text
