"""The command line: what is printed, what is written, and one clear line with exit code 2 on bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

import zoo
from command_line import Run
from edgelstm.graph.step import METADATA_KEY


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    zoo.lstm().save(path)
    return path


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = tmp_path / "frames.npy"
    np.save(path, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    return path


def test_run_writes_what_the_runner_gives(run: Run, model: Path, frames: Path, tmp_path: Path) -> None:
    from edgelstm import Runner

    code, text, _ = run("run", model, "--source", frames, "--out", "out.npz", "--json")
    assert code == 0
    report = json.loads(text)
    assert (report["frames"], report["skipped"]) == (20, 0)
    assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["max_ms"]
    with Runner.open(model) as runner:
        stream = runner.stream("lone")
        expected = [stream.step(x)["y"].copy() for x in np.load(frames)]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], expected)


def test_run_prints_a_table_and_stops_at_the_limit(run: Run, model: Path, frames: Path) -> None:
    code, text, _ = run("run", model, "--source", frames, "--limit", 7, "-o", "out.jsonl")
    assert code == 0
    assert "p99 ms" in text
    assert len(Path("out.jsonl").read_text().splitlines()) == 7


def test_how_a_source_is_read_is_said_once_before_it_streams(run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    zoo.persistence(shape=(1, 4, 6)).save("model.onnx")
    height, width = 4, 6
    exif = image.Exif()
    exif[274] = 6
    for k in range(3):
        image.new("L", (height, width), 40 * k).save(f"{k}.png", exif=exif)
    lines = [
        "left out: 1 file that is no image (.onnx)",
        "PNG: grey, 8 bits",
        "rotated by 90 degrees clockwise, as the file says",
    ]
    code, text, error = run("run", "model.onnx", "--source", tmp_path, "--json")
    assert (code, error) == (0, "".join(f"source: {line}\n" for line in lines))
    report = json.loads(text)
    assert (report["frames"], report["said"], report["values"]) == (3, lines, [0, 255])
    code, _, error = run("verify", "model.onnx", "model.onnx", "--source", tmp_path, "--json")
    assert (code, error) == (0, "".join(f"source: {line}\n" for line in lines))


def test_lines_go_to_standard_output(run: Run, model: Path, frames: Path) -> None:
    code, text, error = run("run", model, "--source", frames, "--limit", 3, "--output", "-")
    assert code == 0
    assert [json.loads(line)["index"] for line in text.splitlines()] == [0, 1, 2]
    assert "p99 ms" in error


def test_lines_can_be_followed(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", np.zeros((2_000_000, 3), np.float32))
    command = [sys.executable, "-m", "edgelstm", "run", str(model), "--source", str(tmp_path / "long.npy")]
    with subprocess.Popen(
        [*command, "--output", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["index"] for _ in range(3)] == [0, 1, 2]
        assert process.poll() is None, "it goes on"
        process.stdout.close()  # as `head -3` does
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", [["--version"], ["inspect", "{}", "--json"], ["inspect", "{}"]])
def test_a_full_disk_behind_standard_output_is_one_line(model: Path, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgelstm", *(word.format(model) for word in command)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "edgelstm: can't write standard output: found No space left on device\n"


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGHUP"])
def test_a_terminated_run_leaves_nothing(model: Path, tmp_path: Path, sent: str) -> None:
    """Not even a hidden temporary file; a terminal or a connection that is gone ends it too."""
    number = getattr(signal, sent, None) or pytest.skip(f"no {sent} here")
    np.save(tmp_path / "long.npy", np.zeros((2_000_000, 3), np.float32))
    command = [sys.executable, "-m", "edgelstm", "run", str(model), "--source", str(tmp_path / "long.npy")]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "out.jsonl")],
        stderr=subprocess.PIPE,
        text=True,
        # What nohup started has learnt to ignore it, and so would its children.
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 60
        while not any(p.name.startswith(".out") for p in tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert {p.name for p in tmp_path.iterdir()} == {"long.npy", model.name}


def test_old_names_of_options_are_taken(run: Run, model: Path, frames: Path) -> None:
    assert run("run", model, "--source", frames, "--out", "out.npz", "--limit", 2)[0] == 0
    assert Path("out.npz").exists()
    _, text, _ = run("run", "--help")
    assert "--output" in text
    assert "--out " not in text


def test_an_option_given_twice_is_refused(run: Run, model: Path, frames: Path) -> None:
    code, _, error = run("verify", model, model, "--source", frames, "--source", "other.npy")
    assert code == 2
    assert "--source is given twice: expected once: it takes one value" in error


def test_frames_that_are_not_finite(run: Run, model: Path) -> None:
    values = np.zeros((5, 3), np.float32)
    values[2, 1] = np.nan
    np.save("bad.npy", values)
    code, _, error = run("run", model, "--source", "bad.npy", "--out", "out.npz")
    assert code == 2
    assert "frame 2 of stream 'main', input 'x': found 1 value that is NaN or infinite" in error
    assert not Path("out.npz").exists()
    code, text, _ = run("run", model, "--source", "bad.npy", "--on-bad-frame", "skip", "--json")
    assert code == 0
    assert (json.loads(text)["frames"], json.loads(text)["skipped"]) == (4, 1)


def test_verify_prints_worst_and_last_and_draws(run: Run, model: Path, frames: Path) -> None:
    code, text, _ = run("verify", model, model, "--source", frames, "--json", "--plot", "drift.svg")
    assert code == 0
    data = json.loads(text)
    assert data["frames"] == 20
    assert data["worst"]["error"] == 0
    assert Path("drift.svg").read_text().startswith("<?xml")
    zoo.lstm(seed=1).save("other.onnx")
    code, text, _ = run("verify", model, "other.onnx", "--tolerance", "1e-3")
    assert code == 1
    assert "worst" in text


def test_verify_says_why_fewer_frames_are_compared(run: Run, model: Path, frames: Path) -> None:
    assert run("export", model, "--window", 8, "-o", "w.onnx")[0] == 0
    for limit, why in ((12, "too few for a window are left"), (30, "the source has no more")):
        code, text, _ = run("verify", model, "w.onnx", "--source", frames, "--limit", limit)
        assert code == 0
        assert f"{8 if limit == 12 else 16} frames were compared, not {limit}: {why}" in text


def test_verify_says_where_errors_lead(run: Run, tmp_path: Path) -> None:
    zoo.persistence(factor=1.0).save("a.onnx")
    zoo.persistence(factor=1.02).save("b.onnx")
    blink = 0.5 + 0.4 * np.sin(np.arange(60))[:, None, None] * np.ones((4, 4))
    np.save("blink.npy", blink.astype(np.float32))
    code, text, error = run("verify", "a.onnx", "b.onnx", "--source", "blink.npy", "--threshold", "0.6")
    assert (code, error) == (0, "")
    assert text.count("settles at 0.02") == 2
    assert "60 frames were compared, not 200: the source has no more" in text
    assert "output forecast, 58 forecasts against what came; CSI of 0.6" in text
    assert "b against a: MAE +" in text
    assert ", CSI +0.0000" in text
    zoo.running_sum().save("sum.onnx")
    np.save("ones.npy", np.ones(100, np.float32))
    code, text, error = run("verify", "sum.onnx", "sum.onnx", "--source", "ones.npy", "--limit", "100")
    assert (code, error) == (0, "")
    assert (
        "state s: grows linearly by 1,000 in 1,000 frames, 103 at frame 99; float16 (65,504 at most)" in text
    )
    assert "not 100" not in text
    code, text, _ = run("verify", "sum.onnx", "sum.onnx", "--source", "ones.npy", "--limit", "100", "--json")
    (state,) = json.loads(text)["states"]
    assert state["grows"]
    assert state["overflow_frame"]["float16"] == pytest.approx(65500, abs=1)


def test_inspect(run: Run, model: Path) -> None:
    code, text, _ = run("inspect", model)
    assert code == 0
    for part in ("z9_h -> z9_h_next, starts at 0", "a0_c -> a0_c_next, starts at -", "2 FusedGates_lstm"):
        assert part in text
    data = json.loads(run("inspect", model, "--json")[1])
    assert data["signature"]["schema"] == 1
    assert data["operators"]["Gemm"] == 2


def test_every_command_has_help_with_an_example(run: Run) -> None:
    for command in ("export", "run", "verify", "inspect", "bench", "doctor", "demo"):
        code, text, _ = run(command, "--help")
        assert code == 0
        assert f"edgelstm {command}" in text.replace("\n", " "), command


def test_doctor_as_a_health_check(run: Run) -> None:
    """Docker takes 1 for unhealthy and reserves 2."""
    assert run("doctor", "--check") == (0, "", "")
    code, text, error = run("doctor", "--check", "--device", "cuda", "--json")
    ready = "cuda" in json.loads(text)["devices"]
    assert code == (0 if ready else 1)
    assert ready == (error == "")
    assert run("doctor", "--check", "--device", "gpu")[0] == 2
    assert run("doctor", "--device", "cpu")[0] == 2


def test_export_of_a_plain_onnx_by_its_state_pairs(run: Run, model: Path) -> None:
    plain = onnx.load(model)
    del plain.metadata_props[:]
    onnx.save(plain, "plain.onnx")
    code, _, error = run("run", "plain.onnx", "--source", "frames.npy")
    assert code == 2
    assert "plain.onnx has no Signature" in error
    assert "edgelstm export plain.onnx --state INPUT=OUTPUT -o step.onnx" in error
    pairs = [f"{n}={n}_next" for n in ("z9_h", "a0_c", "z8_h", "a1_c")]
    states = [part for pair in pairs for part in ("--state", pair)]
    code, text, error = run("export", "plain.onnx", *states, "-o", "step.onnx", "--json")
    assert code == 0, error
    proof = json.loads(text)["proof"]
    assert proof["share"] <= 1
    assert proof["graph"] <= 1e-5
    # A declared state starts from zeros: the file could not say otherwise.
    signature = json.loads(run("inspect", "step.onnx", "--json")[1])["signature"]
    assert [s["name"] for s in signature["states"]] == ["z9_h", "a0_c", "z8_h", "a1_c"]
    code, _, error = run("export", "plain.onnx", "--state", "h=nothing", "-o", "bad.onnx")
    assert code == 2
    assert not Path("bad.onnx").exists()


def test_export_of_a_window(run: Run, model: Path, frames: Path) -> None:
    code, text, error = run("export", model, "--window", 4, "-o", "window.onnx", "--source", frames, "--json")
    assert code == 0, error
    data = json.loads(text)
    assert data["signature"]["window"] == 4
    code, text, error = run(
        "verify", model, "window.onnx", "--source", frames, "--tolerance", "1e-5", "--json"
    )
    assert code == 0, error
    assert json.loads(text)["frames"] == 20


BAD = {
    "no such model": (("run", "no.onnx", "--source", "frames.npy"), "no.onnx does not exist"),
    "not ONNX": (("run", "text.onnx", "--source", "frames.npy"), "can't open text.onnx"),
    "not ONNX, inspect": (("inspect", "text.onnx"), "text.onnx is not an ONNX file, or is truncated"),
    "truncated": (("run", "short.onnx", "--source", "frames.npy"), "can't open short.onnx"),
    "truncated, inspect": (("inspect", "short.onnx"), "short.onnx is not an ONNX file, or is truncated"),
    "disagreement": (
        ("run", "liar.onnx", "--source", "frames.npy"),
        "liar.onnx: tensor 'y' of the graph and its Signature disagree: found float32['N', 2]; expected float32['N', 7]",
    ),
    "disagreement, inspect": (("inspect", "liar.onnx"), "'y' of the graph and its Signature disagree"),
    "frame shape": (("run", "model.onnx", "--source", "wide.npy"), "found [5]"),
    "no such source": (("run", "model.onnx", "--source", "none.npy"), "source none.npy does not exist"),
    "no such folder": (
        ("run", "model.onnx", "--source", "frames.npy", "--out", "none/out.npz"),
        "can't write none/out.npz",
    ),
    "export, no such folder": (
        ("export", "model.onnx", "-o", "none/out.onnx"),
        "can't write none/out.onnx: found no such folder",
    ),
    "unknown sink": (("run", "model.onnx", "--source", "frames.npy", "--out", "out.xyz"), "output out.xyz"),
    "unknown kind": (
        ("export", "model.tflite", "-o", "out.onnx"),
        "can't export model.tflite: found suffix .tflite",
    ),
    "policy": (
        ("run", "model.onnx", "--source", "frames.npy", "--on-bad-frame", "ignore"),
        "on_bad_frame: found ignore; expected error or skip or zero",
    ),
    "device": (("run", "model.onnx", "--source", "frames.npy", "--device", "tpu"), "device: found tpu"),
    "preprocess": (
        ("run", "model.onnx", "--source", "frames.npy", "--preprocess", "blur=3"),
        "unknown operation: found blur",
    ),
    "tolerance": (
        ("verify", "model.onnx", "model.onnx", "--tolerance", "nan"),
        "Invalid value for '--tolerance'",
    ),
    "threshold": (("verify", "model.onnx", "model.onnx", "--threshold", "inf"), "threshold: found inf"),
    "threshold for none": (
        ("verify", "model.onnx", "model.onnx", "--source", "frames.npy", "--threshold", "1"),
        "a threshold, and no forecast to score: found no such output; expected a source, one input, and an output",
    ),
    "threshold for noise": (
        ("verify", "model.onnx", "model.onnx", "--threshold", "1"),
        "a threshold, and no forecast to score: found noise instead of a source",
    ),
    # Known before any frame is read: the source does not even exist.
    "plot suffix": (
        ("verify", "model.onnx", "model.onnx", "--source", "none.npy", "--plot", "drift.txt"),
        "can't draw drift.txt: found suffix .txt; expected .png, .svg, .pdf",
    ),
    "plot folder": (
        ("verify", "model.onnx", "model.onnx", "--source", "none.npy", "--plot", "none/drift.png"),
        "can't write none/drift.png: found no such folder",
    ),
    "steps": (("verify", "model.onnx", "model.onnx", "--limit", "0"), "Invalid value for '--limit'"),
    "weights for none": (
        ("verify", "model.onnx", "model.onnx", "--weights", "w.pt"),
        "weights or arguments given for model.onnx and model.onnx: expected a torch factory",
    ),
    "other frames": (("verify", "model.onnx", "conv.onnx"), "take different frames"),
    "option value": (
        ("export", "model.onnx", "--window", "0", "-o", "out.onnx"),
        "Invalid value for '--window'",
    ),
    "no such option": (("run", "model.onnx", "--sauce", "frames.npy"), "No such option: --sauce"),
    "missing option": (("run", "model.onnx"), "Missing option '--source'. Try: edgelstm run --help"),
    "no such command": (("stream", "model.onnx"), "No such command 'stream'"),
    "window": (("export", "window.onnx", "--window", "2", "-o", "out.onnx"), "window"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the cases name."""
    folder = tmp_path_factory.mktemp("inputs")
    zoo.lstm().save(folder / "model.onnx")
    np.save(folder / "frames.npy", np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    (folder / "text.onnx").write_text("this is no model")
    (folder / "short.onnx").write_bytes((folder / "model.onnx").read_bytes()[:400])
    liar = onnx.load(folder / "model.onnx")
    for entry in liar.metadata_props:
        if entry.key == METADATA_KEY:
            data = json.loads(entry.value)
            data["outputs"][0]["shape"] = ["N", 7]
            entry.value = json.dumps(data)
    onnx.save(liar, folder / "liar.onnx")
    np.save(folder / "wide.npy", np.zeros((4, 5), np.float32))
    zoo.conv_lstm().save(folder / "conv.onnx")
    from edgelstm.passes.unroll import unroll

    unroll(zoo.lstm(), 2).save(folder / "window.onnx")
    return folder


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_gives_one_line_and_leaves_nothing(run: Run, inputs: Path, case: str) -> None:
    shutil.copytree(inputs, ".", dirs_exist_ok=True)
    before = sorted(Path().iterdir())
    arguments, message = BAD[case]
    code, text, error = run(*arguments)
    assert code == 2, (text, error)
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(Path().iterdir()) == before


def test_the_console_script_itself(model: Path, frames: Path) -> None:
    command = [sys.executable, "-c", "from edgelstm.cli import main; main()"]
    done = subprocess.run([*command, "run", "none.onnx", "--source", "x.npy"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edgelstm: none.onnx does not exist. Check the path\n"
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("edgelstm ")


def test_names_with_brackets_are_printed_as_they_are(
    run: Run, model: Path, frames: Path, tmp_path: Path
) -> None:
    (tmp_path / "a[").mkdir()
    odd = tmp_path / "a[" / "b].onnx"  # "[/b]" would close a style that was never opened
    model.rename(odd)
    for arguments in (("inspect", odd), ("run", odd, "--source", frames), ("verify", odd, odd, "--limit", 2)):
        code, text, error = run(*arguments)
        assert (code, error) == (0, "")
        assert "a[/b]" in text  # a table may fold what follows
    assert run("export", odd, "-o", tmp_path / "a[" / "c].onnx", "--limit", 2)[0] == 0


def test_numpy_has_one_thread_beside_onnx_runtime() -> None:
    code = """
import os, sys

class Asked:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print(os.environ.get("OPENBLAS_NUM_THREADS"))

sys.meta_path.insert(0, Asked())
import edgelstm.cli
"""
    bare = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]  # NumPy reads it when it is loaded
