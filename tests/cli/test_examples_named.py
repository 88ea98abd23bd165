"""``example:`` names files that come with the package, wherever a command takes a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from command_line import Run


def test_models_and_sources(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = "example:sensor_lstm/model.safetensors"
    assert run("export", model, "-o", "plant.onnx", "--steps", "2")[0] == 0
    stream = "example:sensor_lstm/test_stream.npz:frames"
    for source in (["--source", stream], [f"--source={stream}"], ["--source", f"north={stream}"]):
        assert run("run", "plant.onnx", *source, "--limit", "3", "-o", "out.npz")[0] == 0
        with np.load("out.npz") as made:
            assert made["y"].shape[0] == 3


def test_what_is_not_there_is_an_error_that_lists_what_is(run: Run) -> None:
    code, _, said = run("inspect", "example:nothing.onnx")
    assert code == 2
    assert said.startswith(
        "edgelstm: example:nothing.onnx is not there: expected moving_digits/model.safetensors, "
    )
    assert "serve/pumps.csv" in said
