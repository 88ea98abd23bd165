"""--hop: windows that slide or hop, wherever there is a source, and to the same effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

import edgelstm
from command_line import Run
from edgelstm.cli import app
from edgelstm.cli.command import OLD_NAMES
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.graph.step import make_step

T, HOP, FRAMES = 5, 2, 59


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x.npy, single frames; cut.npy, the windows of them; ahead.onnx, [T, 3] -> [2, 3]; back.onnx, a window of T frames."""
    where, rng = tmp_path_factory.mktemp("windows"), np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(FRAMES, 3)), 0).astype(np.float32) / 10
    np.save(where / "x.npy", x)
    np.save(where / "cut.npy", np.ascontiguousarray(sliding_window_view(x, T, 0).transpose(0, 2, 1)[::HOP]))

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 2, name)

    node, seen = helper.make_node, TensorSpec("x", "float32", ("N", T, 3))
    ahead = make_step(
        [
            node("Flatten", ["x"], ["flat"]),
            node("Gemm", ["flat", "w", "b"], ["z"]),
            node("Tanh", ["z"], ["t"]),
            node("Reshape", ["t", "shape"], ["y"]),
        ],
        Signature((seen,), (TensorSpec("y", "float32", ("N", 2, 3)),), ()),
        [
            weight("w", 3 * T, 6),
            weight("b", 6),
            numpy_helper.from_array(np.array([-1, 2, 3], np.int64), "shape"),
        ],
    )
    ahead.save(where / "ahead.onnx")
    back = make_step(
        [node("MatMul", ["x", "w"], ["z"]), node("Tanh", ["z"], ["y"])],
        Signature((seen,), (TensorSpec("y", "float32", ("N", T, 3)),), (), window=T),
        [weight("w", 3, 3)],
    )
    back.save(where / "back.onnx")
    return where


def json_of(run: Run, *words: object) -> dict[str, object]:
    code, text, error = run(*words, "--json")
    assert code == 0, error
    return json.loads(text)  # type: ignore[no-any-return]


def test_every_command_with_a_source_takes_a_hop() -> None:
    from typer.main import get_command

    lacking = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        options = {o for p in command.params for o in p.opts}
        if "--source" in options and "--hop" not in options:
            lacking.append(name)
    assert lacking == []


def test_a_hop_does_what_windows_cut_beforehand_do(run: Run, folder: Path) -> None:
    """run, export, verify, calibrate, quantize, report: the same figures from frames with a hop and from the windows."""
    model, cases = folder / "ahead.onnx", ((folder / "x.npy", "--hop", HOP), (folder / "cut.npy",))
    found: list[dict[str, object]] = []
    for source, *hop in cases:
        words = ("--source", source, *hop)
        all_of: dict[str, object] = {}
        made = json_of(run, "export", model, "-o", "e.onnx", *words)
        all_of["export"] = made["signature"], made["comparison"]["frames"]  # type: ignore[index]
        calibrated = json_of(run, "calibrate", model, "-o", "c.json", *words)
        all_of["calibrate"] = calibrated["tensors"], calibrated["frames"]
        quantised = json_of(run, "quantize", model, "--calibration", "c.json", "-o", "q.onnx")
        assert quantised["verification"]["frames"] == len(np.load(folder / "cut.npy"))  # type: ignore[index]
        all_of["quantize"] = quantised["verification"]["outputs"]  # type: ignore[index]
        auto = ("--precision", "auto", "--budget", 0.5, "--limit", FRAMES)
        all_of["auto"] = json_of(run, "quantize", model, *auto, "-o", "a.onnx", *words)["sha256"]
        verified = json_of(run, "verify", model, "q.onnx", *words)
        all_of["verify"] = verified["worst"], verified["frames"]
        assert run("run", "q.onnx", "-o", "y.npz", *words)[0] == 0
        all_of["run"] = np.load("y.npz")["y"].tolist()
        all_of["report"] = json_of(run, "report", model, "-o", "r.html", *words)["frames"]
        found.append(all_of)
    assert found[0] == found[1]


def test_an_exported_window_without_a_state_may_slide(run: Run, folder: Path) -> None:
    """T end to end is what a window takes by itself; and the detector sees as many windows as there are."""
    model, x = folder / "back.onnx", folder / "x.npy"
    whole = FRAMES // T
    for words, windows in (((), whole), (("--hop", T), whole), (("--hop", 1), FRAMES - T + 1)):
        source = ("--source", x, *words)
        fitted = json_of(run, "fit-detector", model, "--target", "input", "-o", "d.json", *source)
        assert fitted["samples"] == windows
        assert json_of(run, "detect", model, "--detector", "d.json", *source)["steps"] == windows
        assert json_of(run, "verify", model, model, *source)["frames"] == windows * T
        assert json_of(run, "calibrate", model, "-o", "c.json", *source)["frames"] in range(
            (windows - 8 - T) * T, windows * T + 1
        )
        auto = ("--precision", "auto", "--budget", 0.5)
        assert json_of(run, "quantize", model, *auto, "-o", "a.onnx", *source)["search"]
        made = json_of(run, "export", model, "-o", "e.onnx", *source)
        assert made["comparison"]["frames"] == windows * T  # type: ignore[index]


def test_forecasts_of_windows_are_scored_against_what_came(run: Run, folder: Path) -> None:
    x = np.load(folder / "x.npy").astype(np.float64)
    for hop in (1, HOP, T + 2):
        found = json_of(run, "score", folder / "ahead.onnx", "--source", folder / "x.npy", "--hop", hop)
        assert (
            run("run", folder / "ahead.onnx", "--source", folder / "x.npy", "--hop", hop, "-o", "y.npz")[0]
            == 0
        )
        y = np.load("y.npz")["y"]
        ends = [T - 1 + hop * k for k in range(len(y)) if T - 1 + hop * k + 2 < FRAMES]
        for lead, row in enumerate(found["scores"], 1):  # type: ignore[arg-type]
            came = np.stack([x[end + lead] for end in ends])
            assert row["lead"] == lead
            assert row["forecasts"] == len(ends)
            assert row["mae"] == pytest.approx(np.abs(y[: len(ends), lead - 1] - came).mean(), rel=1e-6)
            last = np.abs(x[ends] - came).mean()
            assert row["mae_persistence"] == pytest.approx(last, rel=1e-6)


def test_frames_held_back_are_in_no_window_that_was_seen(folder: Path, tmp_path: Path) -> None:
    """Windows that overlap share frames: those between are left out."""
    x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    x[-64:] *= 100  # seen by nobody, so in no range
    np.save(tmp_path / "x.npy", x)
    for hop in (1, 2, T, T + 4):
        made = edgelstm.calibrate(
            folder / "ahead.onnx", str(tmp_path / "x.npy"), hop=hop, threads=1
        ).calibration
        check = made.data[0]["check"]
        first = check["start"] + check["frames"] - check["held_back"]
        assert check["hop"] == hop
        assert 300 - 64 - hop < first
        seen = made.inputs["x"]
        if first <= 300 - 64:
            assert max(abs(seen.low), abs(seen.high)) < 10
    edgelstm.quantize(folder / "ahead.onnx", made, threads=1)


def test_a_hop_without_a_source_is_refused(run: Run, folder: Path) -> None:
    code, _, error = run("export", folder / "ahead.onnx", "-o", "e.onnx", "--hop", 1)
    assert (code, "a hop of 1: found no source" in error) == (2, True)
    code, _, error = run("verify", folder / "ahead.onnx", folder / "ahead.onnx", "--hop", 1)
    assert (code, "a hop of 1: found no source" in error) == (2, True)


def test_old_names_of_options_are_taken_and_not_shown(run: Run, folder: Path) -> None:
    code, _, error = run("verify", folder / "ahead.onnx", folder / "ahead.onnx", "--steps", 4)
    assert code == 0, error
    words = ("--source", folder / "cut.npy", "--frames", 30, "-o", "c.json", "--target", "tensorrt")
    assert json_of(run, "calibrate", folder / "ahead.onnx", *words)["frames"] == len(
        np.load(folder / "cut.npy")
    )
    for command, names in OLD_NAMES.items():
        text = run(command, "--help")[1]
        for old, new in names.items():
            assert new in text
            assert f"{old} " not in text, (command, old)


def test_old_names_of_arguments_are_taken_with_a_warning(folder: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"calibrate\(frames=\) is called limit= now"):
        edgelstm.calibrate(folder / "ahead.onnx", [str(folder / "cut.npy")], frames=30)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="two names of one argument"):
        edgelstm.verify("a.onnx", "b.onnx", steps=1, limit=2)  # type: ignore[call-arg]


def test_what_windows_foretell_is_held_against_the_frame_behind_them(run: Run, folder: Path) -> None:
    x = np.load(folder / "x.npy").astype(np.float64)
    model = folder / "ahead.onnx"
    for hop in (1, HOP, T):
        source = ("--source", folder / "x.npy", "--hop", hop)
        assert run("run", model, *source, "-o", "y.npz")[0] == 0
        y = np.load("y.npz")["y"]
        assert run("fit-detector", model, *source, "-o", "d.json")[0] == 0
        assert run("detect", model, *source, "--detector", "d.json", "-o", "d.csv")[0] == 0
        scores = [float(row.split(",")[4]) for row in Path("d.csv").read_text().splitlines()[1:]]
        wanted = [np.abs(x[T - 1 + hop * k + 1] - y[k, 0]).mean() for k in range(len(y) - 1)]
        np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    code, _, error = run("fit-detector", model, "--source", folder / "x.npy", "--hop", T + 1, "-o", "d.json")
    assert (code, f"a hop of {T + 1}: found windows of {T} frames" in error) == (2, True), error
