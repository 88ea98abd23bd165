"""calibrate and quantize on the command line: the walk, and one clear line for what can't be."""

# ruff: noqa: F811

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import frames, model  # noqa: F401

import edgelstm
import zoo
from command_line import Run
from edgelstm.quantize.recipe import load_recipe


@pytest.fixture
def long(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "long.npy", np.cumsum(rng.normal(size=(80, 3)) * 0.3, 0).astype(np.float32))
    return tmp_path / "long.npy"


def test_the_walk(run: Run, model: Path, long: Path) -> None:
    code, text, error = run("calibrate", model, "--source", long, "--rounds", 2, "-o", "c.json")
    assert (code, error) == (0, ""), error
    assert "70 frames in 1 sequence, method recurrent" in text
    assert "10 more frames, at the ends of sequences, are left for `quantize` to verify on" in text
    assert "second round: what changed" in text
    code, text, error = run("quantize", model, "--calibration", "c.json", "-o", "q.onnx")
    assert (code, error) == (0, ""), error
    assert "z9_h uint8" in text
    assert "a0_c float32" in text
    code, text, error = run("verify", model, "q.onnx", "--source", long, "--limit", 80)
    assert (code, error) == (0, "")
    code, text, error = run("run", "q.onnx", "--source", long, "--out", "y.npz", "--json")
    assert (code, error) == (0, "")
    assert json.loads(run("inspect", "q.onnx", "--json")[1])["signature"]["states"][0]["quantization"]


def test_json(run: Run, model: Path, long: Path) -> None:
    code, text, _ = run("calibrate", model, "--source", long, "--sequence", 20, "-o", "c.json", "--json")
    assert code == 0
    data = json.loads(text)
    assert [d["frames"] for d in data["data"]] == [20] * 4
    assert data["streams"] == 4
    code, text, _ = run(
        "quantize", model, "--calibration", "c.json", "--runtime", "tensorrt", "-o", "q.onnx", "--json"
    )
    assert code == 0
    assert {row["precision"] for row in json.loads(text)["products"]} == {"int8"}
    code, text, _ = run("quantize", model, "--precision", "bf16", "-o", "b.onnx", "--json")
    assert code == 0
    assert {s["dtype"] for s in json.loads(text)["states"]} == {"bfloat16", "float32"}
    auto = ("--precision", "auto", "--budget", "0.5", "--source", long, "--limit", "40")
    code, text, _ = run("quantize", model, *auto, "-o", "a.onnx", "--json")
    assert code == 0
    assert json.loads(text)["search"]["error"] <= 0.5


def test_tables_of_auto(run: Run, model: Path, long: Path) -> None:
    auto = ("--precision", "auto", "--budget", "0.02", "--source", long, "--limit", "40")
    code, text, error = run("quantize", model, *auto, "-o", "a.onnx")
    assert (code, error) == (0, "")
    for part in ("int8 alone", "recurrent", "budget 0.02", "mixes tried"):
        assert part in text


def test_a_recipe(run: Run, model: Path, long: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    recipe = tmp_path / "sub" / "r.toml"
    recipe.write_text(
        'method = "minmax"\nstreams = 2\n[[sequence]]\nsource = "../long.npy"\nframes = 30\n'
        '[[sequence]]\nsource = "../long.npy"\nstart = 40\n[tensors."g*"]\nmethod = "mse"\n'
    )
    code, text, error = run("calibrate", model, "--recipe", recipe, "-o", "c.json", "--json")
    assert (code, error) == (0, ""), error
    data = json.loads(text)
    assert [d["frames"] for d in data["data"]] == [30, 40]
    assert data["method"]["tensors"] == {"g*": {"method": "mse"}}
    assert load_recipe(recipe).streams == 2


BAD = {
    "too few": (("calibrate", "model.onnx", "--source", "frames.npy", "-o", "o.json"), "too few frames to calibrate on: found 20"),
    "no source": (("calibrate", "model.onnx", "-o", "o.json"), "no sequences to calibrate on"),
    "missing source": (("calibrate", "model.onnx", "--source", "no.npy", "-o", "o.json"), "source no.npy does not exist"),
    "short for a sequence": (
        ("calibrate", "model.onnx", "--source", "frames.npy", "--sequence", "50", "-o", "o.json"),
        "source frames.npy is shorter than a sequence: found 20 frames; expected at least 50",
    ),
    "method": (
        ("calibrate", "model.onnx", "--source", "long.npy", "--method", "max", "-o", "o.json"),
        "calibration method: found max; expected one of recurrent",
    ),
    "folder": (("calibrate", "model.onnx", "--source", "long.npy", "-o", "none/o.json"), "can't write none/o.json"),
    "quantised already": (
        ("calibrate", "q.onnx", "--source", "long.npy", "-o", "o.json"),
        "the model is quantised already",
    ),
    "recipe": (("calibrate", "model.onnx", "--recipe", "bad.toml", "-o", "o.json"), "recipe bad.toml is not TOML"),
    "recipe key": (("calibrate", "model.onnx", "--recipe", "key.toml", "-o", "o.json"), "recipe key.toml: found key 'sauce'"),
    "recipe, short": (
        ("calibrate", "model.onnx", "--recipe", "short.toml", "-o", "o.json"),
        "frames.npy is shorter than the sequence: found 20 frames from frame 0 on; expected 50",
    ),
    "recipe, start": (("calibrate", "model.onnx", "--recipe", "start.toml", "-o", "o.json"), "start -1"),
    "recipe, no source": (("calibrate", "model.onnx", "--recipe", "empty.toml", "-o", "o.json"), "found no source; expected source"),
    "other model": (
        ("quantize", "conv.onnx", "--calibration", "c.json", "-o", "o.onnx"),
        "the calibration was made for another model",
    ),
    "other preprocessing": (
        ("quantize", "model.onnx", "--calibration", "scaled.json", "-o", "o.onnx"),
        "the calibration was made with other preprocessing",
    ),
    "no calibration": (("quantize", "model.onnx", "-o", "o.onnx"), "precision int8 needs a calibration"),
    "not a calibration": (("quantize", "model.onnx", "--calibration", "model.onnx", "-o", "o.onnx"), "model.onnx is not a calibration"),
    "one-sided": (("quantize", "model.onnx", "--calibration", "sided.json", "-o", "o.onnx"), "one-sided"),
    "zero": (("quantize", "model.onnx", "--calibration", "zero.json", "-o", "o.onnx"), "found 0 in every frame"),
    "infinite": (("quantize", "model.onnx", "--calibration", "inf.json", "-o", "o.onnx"), "infinite or not a number"),
    "twice": (("quantize", "q.onnx", "--calibration", "c.json", "-o", "o.onnx"), "the model is quantised already"),
    "in 16 bits already": (
        ("quantize", "h.onnx", "--precision", "bf16", "--runtime", "tensorrt", "-o", "o.onnx"),
        "the model is quantised already: found weights in float16",
    ),
    "missing calibration": (("quantize", "model.onnx", "--calibration", "no.json", "-o", "o.onnx"), "no.json does not exist"),
    "cut off": (("quantize", "model.onnx", "--calibration", "cut.json", "-o", "o.onnx"), "cut.json is not a calibration"),
    "a tensor missing": (
        ("quantize", "model.onnx", "--calibration", "less.json", "-o", "o.onnx"),
        "the calibration has no range for tensor 'x'",
    ),
    "folder of the model": (
        ("quantize", "model.onnx", "--calibration", "c.json", "-o", "none/o.onnx"),
        "can't write none/o.onnx: found no such folder",
    ),
    "GPU": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--runtime", "tensorrt", "--gpu", "volta", "-o", "o.onnx"),
        "GPU: found volta; expected one of xavier",
    ),
    "GPU for the CPU": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--gpu", "orin", "-o", "o.onnx"),
        "a GPU given for ONNX Runtime on the CPU: found orin",
    ),
    "rest that the GPU lacks": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--runtime", "tensorrt", "--gpu", "xavier", "--rest", "bf16", "-o", "o.onnx"),
        "precision bf16 on xavier",
    ),
    "fp32": (("quantize", "model.onnx", "--precision", "fp32", "-o", "o.onnx"), "precision: found fp32, what the model has"),
    "rest of nothing": (
        ("quantize", "model.onnx", "--precision", "fp16", "--rest", "bf16", "-o", "o.onnx"),
        "rest: found bf16 with precision fp16; expected precision int8 or fp8",
    ),
    "cell state of int8": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--cell-state", "fp16", "-o", "o.onnx"),
        "type of the cell state: found fp16 with precision int8; expected fp32, or --rest in 16 bits",
    ),
    "keep what is not there": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--keep", "stem.*", "-o", "o.onnx"),
        "keep 'stem.*': found no weight of that name; expected one of head.w, w0, w1",
    ),
    "auto without budget": (
        ("quantize", "model.onnx", "--precision", "auto", "--source", "long.npy", "-o", "o.onnx"),
        "precision auto: found no budget or no source",
    ),
    "auto without source": (
        ("quantize", "model.onnx", "--precision", "auto", "--budget", "0.1", "-o", "o.onnx"),
        "precision auto: found no budget or no source",
    ),
    "auto, no budget to keep": (
        ("quantize", "model.onnx", "--precision", "auto", "--budget", "nan", "--source", "frames.npy", "-o", "o.onnx"),
        "--budget: found nan; expected above 0",
    ),
    "auto and keep": (
        ("quantize", "model.onnx", "--precision", "auto", "--budget", "0.1", "--source", "long.npy", "--keep", "w0", "-o", "o.onnx"),
        "keep given: found precision auto, which finds it",
    ),
    "target": (("quantize", "model.onnx", "--calibration", "c.json", "--runtime", "tpu", "-o", "o.onnx"), "runtime: found tpu"),
    "precision": (("quantize", "model.onnx", "--calibration", "c.json", "--precision", "int4", "-o", "o.onnx"), "precision: found int4"),
    "fp8 on the CPU": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--precision", "fp8", "-o", "o.onnx"),
        "precision fp8 for ONNX Runtime on the CPU",
    ),
    "fp8 on Orin": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--runtime", "tensorrt", "--precision", "fp8", "--gpu", "orin", "-o", "o.onnx"),
        "precision fp8 on orin: found an architecture without fp8 arithmetic",
    ),
    "cell state": (
        ("quantize", "model.onnx", "--precision", "fp16", "--cell-state", "int8", "-o", "o.onnx"),
        "type of the cell state: found int8",
    ),
    "rest": (("quantize", "model.onnx", "--calibration", "c.json", "--rest", "int8", "-o", "o.onnx"), "rest: found int8"),
    "suffix": (("quantize", "model.onnx", "--calibration", "c.json", "-o", "o.txt"), "output o.txt: found .txt"),
    "nothing left": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--keep", "*", "-o", "o.onnx"),
        "nothing is left to quantise",
    ),
    "auto alone": (("quantize", "model.onnx", "--precision", "auto", "-o", "o.onnx"), "precision auto: found no budget or no source"),
    "budget for none": (
        ("quantize", "model.onnx", "--calibration", "c.json", "--budget", "0.1", "-o", "o.onnx"),
        "budget, source or hop given: found precision int8",
    ),
    "growing cell state": (
        ("quantize", "sum.onnx", "--calibration", "sum.json", "--precision", "fp16", "--cell-state", "fp16", "-o", "o.onnx"),
        "can't be kept in fp16: it grows for as long as the stream runs",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the cases name."""
    folder = tmp_path_factory.mktemp("inputs")
    zoo.lstm().save(folder / "model.onnx")
    zoo.conv_lstm().save(folder / "conv.onnx")
    growing().save(folder / "sum.onnx")
    write_arrays(folder)
    by_name = {
        "c": edgelstm.calibrate(folder / "model.onnx", str(folder / "long.npy"), folder / "c.json"),
        "scaled": edgelstm.calibrate(
            folder / "model.onnx", str(folder / "long.npy"), folder / "scaled.json", preprocess=["scale=2"]
        ),
        "sum": edgelstm.calibrate(folder / "sum.onnx", str(folder / "ones.npy"), folder / "sum.json"),
    }
    assert all(made.path is not None for made in by_name.values())
    edgelstm.quantize(folder / "model.onnx", folder / "c.json", folder / "q.onnx")
    edgelstm.quantize(folder / "model.onnx", None, folder / "h.onnx", runtime="tensorrt", precision="fp16")
    text = (folder / "c.json").read_text()
    for name, change in {
        "sided": {"high": [None] * 3},
        "zero": {"low": [0] * 3, "high": [0] * 3, "tensor_low": 0, "tensor_high": 0},
        "inf": {"tensor_high": float("inf")},
    }.items():
        data = json.loads(text)
        data["tensors"]["x"] |= change
        (folder / f"{name}.json").write_text(json.dumps(data))
    data = json.loads(text)
    del data["tensors"]["x"]
    (folder / "less.json").write_text(json.dumps(data))
    (folder / "cut.json").write_text(text[:3000])
    (folder / "bad.toml").write_text("method = ")
    (folder / "key.toml").write_text('sauce = "frames.npy"')
    for name, span in {
        "short": 'source = "frames.npy"\nframes = 50',
        "start": 'source = "f"\nstart = -1',
        "empty": "",
    }.items():
        (folder / f"{name}.toml").write_text(f"[[sequence]]\n{span}\n")
    return folder


def write_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "frames.npy", rng.normal(size=(20, 3)).astype(np.float32))
    np.save(folder / "long.npy", np.cumsum(rng.normal(size=(80, 3)) * 0.3, 0).astype(np.float32))
    np.save(folder / "ones.npy", np.ones((200, 2), np.float32))
    np.save(folder / "blank.npy", np.zeros((80, 3), np.float32))
    np.save(folder / "huge.npy", np.full((80, 3), 3e38, np.float32))


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


def growing() -> zoo.StepModel:
    from stepping import from_text

    return from_text(
        """total (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[2, 2] w = {1, 0.5, 0, 1}> { m = MatMul (x, w)  t = Add (s, m)  y = Tanh (t) }""",
        s="t",
    )


def test_a_state_that_grows_is_told_and_left_in_float(run: Run) -> None:
    growing().save("sum.onnx")
    np.save("ones.npy", np.ones((200, 2), np.float32))
    code, text, _ = run("calibrate", "sum.onnx", "--source", "ones.npy", "-o", "sum.json")
    assert code == 0
    assert (
        "state 's' was still growing at the end (largest value 262.5); fp16 would overflow at about frame 4"
        in text
    )
    code, text, error = run("quantize", "sum.onnx", "--calibration", "sum.json", "-o", "q.onnx")
    assert (code, error) == (0, ""), error
    assert "s float32" in text


def test_help_has_examples(run: Run) -> None:
    for command in ("calibrate", "quantize"):
        code, text, _ = run(command, "--help")
        assert code == 0
        assert f"edgelstm {command}" in text.replace("\n", " ")
