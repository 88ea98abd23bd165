"""docs/jetson.md: its commands exist and take these options, its camera program runs, on a video file in place of a camera."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "jetson.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """Arguments of every line of the page that calls ``program``."""
    lines = [line for language, text in BLOCKS if not language for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]
    return [line[1:] for line in words]


def test_the_commands_exist_and_take_these_options() -> None:
    import typer.main

    from edgelstm.cli import app

    group = typer.main.get_command(app)
    lines = commands("edgelstm")
    assert {name for name, *_ in lines} >= {
        "export",
        "quantize",
        "calibrate",
        "build-engine",
        "build-plugin",
        "run",
    }
    for name, *arguments in lines:
        group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_files_are_made_before_they_are_read() -> None:
    made = {"test_stream.npz"}
    for arguments in commands("edgelstm"):
        options = {"-o": None, "--plot": None}
        written = {arguments[k + 1] for k, word in enumerate(arguments[:-1]) if word in options}
        read = {word for word in arguments if re.fullmatch(r"digits\.[\w.]+", word)} - written
        assert read <= made, arguments
        made |= written


def test_what_it_names_in_the_checkout_is_there() -> None:
    for name in set(re.findall(r"\b(?:examples|calibration|benchmarks)/[\w./]+\w", PAGE)):
        known = (ROOT / name).exists() or (ROOT / "examples" / Path(name).name / "model.safetensors").exists()
        assert known, name
    assert "Dockerfile.jetson" in PAGE
    assert "JETPACK_7_IMAGE" in (ROOT / "Dockerfile.jetson").read_text()


def test_the_camera_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av")
    import edgelstm

    model, video = tmp_path / "digits.onnx", tmp_path / "camera.mp4"
    export = next(arguments for arguments in commands("edgelstm") if arguments[0] == "export")
    preprocess = [export[export.index("--preprocess") + 1]]
    edgelstm.export(str(ROOT / export[1]), model, preprocess=preprocess, limit=2, threads=1)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for k in range(5):
            pixels = np.full((120, 160, 3), 40 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (code,) = (text for language, text in BLOCKS if language == "python")
    monkeypatch.setattr(sys, "argv", ["camera.py", str(model), str(video)])
    exec(compile(code, "docs/jetson.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"frame {k}" for k in range(1, 6)]
