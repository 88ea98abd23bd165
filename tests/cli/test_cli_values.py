"""Bad values of options are refused before any work; nothing that is read is written over."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

import edgelstm
import zoo
from command_line import Run
from edgelstm.cli import app

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
#: Numbers that may be negative: thresholds are in the units of the frames.
SIGNED = {"--threshold"}
#: Numbers that may be 0.
ZERO = {"--threshold", "--tolerance", "--idle", "--channel", "--dla-core", "--optimization-level", "--settle"}


def refusal(name: str, words: list[str]) -> str:
    """What parsing alone says against it; empty where it is taken."""
    try:
        COMMANDS[name].make_context(name, list(words))
    except Exception as error:  # typer's, whose message names the option, and ours
        return str(getattr(error, "format_message", error.__str__)())
    return ""


def test_bad_numbers_are_refused_before_anything_is_read(run: Run) -> None:
    """For every command and every option that takes a number: while it is parsed, before the command begins."""
    seen = []
    for name, command in COMMANDS.items():
        words: list[str] = []
        for p in command.params:
            if p.required:
                words += [p.opts[-1], "none.onnx"] if p.param_type_name == "option" else ["none.onnx"]
        for parameter in command.params:
            option = parameter.opts[0]
            if parameter.param_type_name != "option" or getattr(parameter, "is_flag", False):
                continue
            if not re.search("valid (int|float|number)", refusal(name, [*words, option, "word"])):
                continue
            seen.append(f"{name} {option}")
            bad = ["nan", "inf", "-inf", "9" * 400] + ([] if option in SIGNED else ["-1"])
            for value in [*bad, *([] if option in ZERO else ["0"])]:
                assert option in refusal(name, [*words, f"{option}={value}"]), (name, option, value)
    assert len(seen) > 35, seen
    for words in (("--tolerance", "-1"), ("--limit", "9" * 30), ("--threads", "nan"), ("--window", "0")):
        code, _, error = run("export", "none.onnx", "-o", "m.onnx", *words)
        assert (code, len(error.strip().splitlines()), words[0] in error) == (2, 1, True), error


def test_numbers_in_text_are_looked_at_too(run: Run) -> None:
    for words in (
        ("run", "m.onnx", "--source", "x.npy", "--range", "nan,1"),
        ("run", "m.onnx", "--source", "x.npy", "--range", "1,0"),
        ("export", "m.onnx", "-o", "o.onnx", "--frame", "0,3"),
        ("export", "m.onnx", "-o", "o.onnx", "--frame", "99999999,99999999"),
        ("export", "m.onnx", "-o", "o.onnx", "--fix", "sr=1e999"),
        ("export", "m.onnx", "-o", "o.onnx", "--fix", "sr=NaN"),
        ("build-engine", "m.onnx", "-o", "m.plan", "--streams", "0"),
        ("build-engine", "m.onnx", "-o", "m.plan", "--workspace", "-1"),
    ):
        code, _, error = run(*words)
        assert (code, words[-2] in error) == (2, True), error


@pytest.fixture
def model(tmp_path: Path) -> Path:
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", frames=x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b,c", comments="")
    return tmp_path / "m.onnx"


def test_what_is_read_is_not_written_over(run: Run, model: Path, tmp_path: Path) -> None:
    """Every command that writes: the same name, a relative one, a symbolic and a hard link."""
    edgelstm.calibrate(model, str(tmp_path / "x.npy"), tmp_path / "c.json", threads=1)
    (tmp_path / "normal.json").write_text("{}")
    commands = (
        (("export", "m.onnx"), "m.onnx"),
        (("lower", "m.onnx"), "m.onnx"),
        (("calibrate", "m.onnx", "--source", "x.npy", "--recipe", "c.json"), "c.json"),
        (("quantize", "m.onnx", "--calibration", "c.json"), "m.onnx"),
        (("run", "m.onnx", "--source", "x.npz"), "x.npz"),
        (("run", "m.onnx", "--source", "left=x.npz:frames"), "x.npz"),
        (("run", "m.onnx", "--source", "x.csv:columns=a,b,c"), "x.csv"),
        (("score", "m.onnx", "--source", "x.csv:columns=a,b,c"), "x.csv"),
        (("detect", "m.onnx", "--source", "x.csv", "--detector", "normal.json"), "x.csv"),
        (("scales", "x.csv:columns=a,b"), "x.csv"),
    )
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "sub").mkdir()
    for words, read in commands:
        suffix = Path(read).suffix
        (tmp_path / f"soft{suffix}").unlink(missing_ok=True)
        (tmp_path / f"hard{suffix}").unlink(missing_ok=True)
        (tmp_path / f"soft{suffix}").symlink_to(read)
        os.link(tmp_path / read, tmp_path / f"hard{suffix}")
        for output in (read, f"sub/../{read}", f"soft{suffix}", f"hard{suffix}", tmp_path / read):
            code, _, error = run(*words, "-o", output)
            assert (code, "found that it is read" in error) == (2, True), (words, output, error)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_folder_of_frames_gets_no_frame_more(run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    zoo.persistence(shape=(1, 4, 4)).save(tmp_path / "m.onnx")
    (tmp_path / "in").mkdir()
    for k in range(3):
        image.new("L", (4, 4), 40 * k).save(tmp_path / "in" / f"{k}.png")
    words = ("run", "m.onnx", "--source", "in", "--preprocess", "scale=0.0039", "-o")
    code, _, error = run(*words, "in/")
    assert (code, "can't write in/" in error) == (2, True), error
    assert len(list((tmp_path / "in").iterdir())) == 3
    (tmp_path / "in" / "x.npz").write_bytes(b"")
    assert run(*words, "in/y.npz")[0] == 0  # no frame: it stands beside them


def test_python_refuses_as_the_command_line_does(model: Path, tmp_path: Path) -> None:
    from edgelstm import EdgeLstmError

    before = model.read_bytes()
    with pytest.raises(EdgeLstmError, match="can't write"):
        edgelstm.lower(model, model)
    with pytest.raises(EdgeLstmError, match="budget: found nan"):
        edgelstm.quantize(model, precision="auto", budget=float("nan"), source=str(tmp_path / "x.npy"))
    with pytest.raises(EdgeLstmError, match="quantile: found 2"):
        edgelstm.fit_detector(model, str(tmp_path / "x.npy"), quantile=2)
    assert model.read_bytes() == before
