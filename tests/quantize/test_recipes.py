"""Recipes: those of the examples lead from a fresh clone to INT8 that runs; what is no recipe is one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from edgelstm import calibrate, export, quantize
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import Inputs, open_source
from edgelstm.quantize.recipe import load_recipe
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.verify.compare import compare

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "calibration").glob("*.toml"))


def test_every_example_has_a_recipe() -> None:
    assert {r.stem for r in RECIPES} == {
        p.parent.name for p in (ROOT / "examples").glob("*/model.safetensors")
    }


@pytest.mark.parametrize(
    "path",
    # Those of the larger models take as long as all others together.
    [
        pytest.param(p, marks=pytest.mark.thorough if p.stem in ("moving_digits", "nowcast_radar") else ())
        for p in RECIPES
    ],
    ids=lambda p: p.stem,
)
def test_the_recipe_makes_an_int8_model_that_follows_the_float_one(path: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / path.stem
    export(example / "model.safetensors", tmp_path / "m.onnx", limit=2)
    found = calibrate(tmp_path / "m.onnx", recipe=path, output=tmp_path / "c.json", threads=1).calibration
    quantised = quantize(tmp_path / "m.onnx", tmp_path / "c.json", tmp_path / "q.onnx")
    assert len(found.data) == len({d["sha256"] for d in found.data}) == len(load_recipe(path).sequences)
    a, b = (OrtProgram((tmp_path / name).read_bytes(), threads=1) for name in ("m.onnx", "q.onnx"))
    with open_source(str(example / "test_stream.npz"), limit=60) as source:
        drift = compare(a, b, (frame for _, frame in Inputs(a.signature).steps(source)))
    coded = {s.name for s in quantised.step.signature.states if s.quantization is not None}
    assert coded == {name for name in found.states if name.startswith("h")}
    assert max(np.median(t.norms) for t in drift.tensors if t.name in coded) < 0.05
    assert (tmp_path / "q.onnx").stat().st_size < 0.35 * (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize("name", ["moving_digits", "sensor_lstm"])
def test_no_test_frame_is_calibrated_on(name: str) -> None:
    with np.load(ROOT / "examples" / name / "test_stream.npz") as file:
        tested = {frame.tobytes() for frame in file["frames"]}
    for span in load_recipe(ROOT / "calibration" / f"{name}.toml").sequences:
        with open_source(span.source) as source:
            assert not tested & {np.asarray(frame.data).tobytes() for frame in source}


def test_sources_stand_relative_to_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        'percentile = 99\nstreams = 2\n[[sequence]]\nsource = "a.npz:x"\nstart = 3\nframes = 5\n'
        f'[[sequence]]\nsource = "{tmp_path.as_posix()}/b.npy"\n[tensors."x"]\nmethod = "mse"\n'
    )
    recipe = load_recipe(path)
    assert [(Path(s.source), s.start, s.frames) for s in recipe.sequences] == [
        (tmp_path / "a.npz:x", 3, 5), (tmp_path / "b.npy", 0, None),
    ]  # fmt: skip
    assert (recipe.method, recipe.percentile, recipe.streams) == ("recurrent", 99, 2)


SEQUENCE = '[[sequence]]\nsource = "long.npy"\n'
BAD: dict[str, tuple[str | bytes, str]] = {
    "no TOML": ("method = ", r"r\.toml is not TOML: found Invalid value"),
    "no text": (b"\xff\xfe", r"r\.toml is not TOML: found 'utf-8' codec"),
    "deep": ("a=" + "[" * 5000, r"r\.toml is not TOML: found maximum recursion depth"),
    "key": ("sauce = 1", r"r\.toml: found key 'sauce'; expected about, hop, method, percentile"),
    "sequence key": (f"{SEQUENCE}stop = 9", r"r\.toml: sequence 0: found key 'stop'; expected frames, source"),
    "no source": ("[[sequence]]\nframes = 30", r"r\.toml: sequence 0: found no source"),
    "no sequence": ('method = "mse"', r"no sequences to calibrate on"),
    "single brackets": ('[sequence]\nsource = "long.npy"', r"r\.toml: sequence: .* expected a list \(\[\[seq"),
    "sequence of text": ('sequence = ["long.npy"]', r"r\.toml: sequence 0: found 'long\.npy'; expected a table"),
    "source of a number": ("[[sequence]]\nsource = 5", r"sequence 0: source: found 5; expected text in quotes"),
    "missing source": ('[[sequence]]\nsource = "no.npy"', r"no\.npy does not exist"),
    "method": (f'method = "max"\n{SEQUENCE}', r"r\.toml: calibration method: found max; expected one of recurr"),
    "percentile": (f"percentile = nan\n{SEQUENCE}", r"r\.toml: percentile: found nan; expected above 50"),
    "percentile in quotes": (f'percentile = "99"\n{SEQUENCE}', r"r\.toml: percentile: found '99'; expected a n"),
    "streams": (f"streams = 0\n{SEQUENCE}", r"r\.toml: streams: found 0; expected at least 1"),
    "half a stream": (f"streams = 1.5\n{SEQUENCE}", r"r\.toml: streams: found 1\.5; expected a whole number"),
    "start": (f"{SEQUENCE}start = -1", r"r\.toml: sequence of .*long\.npy: found start -1"),
    "half a frame": (f"{SEQUENCE}start = 1.5", r"r\.toml: sequence 0: start: found 1\.5; expected a whole number"),
    "frames": (f"{SEQUENCE}frames = 0", r"r\.toml: sequence of .*long\.npy: found start 0, frames 0"),
    "true frames": (f"{SEQUENCE}frames = true", r"r\.toml: sequence 0: frames: found True; expected a whole n"),
    "shorter": (f"{SEQUENCE}start = 10\nframes = 50", r"long\.npy is shorter .*: found 30 frames from frame 10 on"),
    "behind the end": (f"{SEQUENCE}start = 40", r"sequence .*long\.npy from 40 is empty"),
    "preprocessing": (f'preprocess = "scale=2"\n{SEQUENCE}', r"r\.toml: preprocess: .* expected a list"),
    "operation": (f'preprocess = ["blur=2"]\n{SEQUENCE}', r"unknown operation: found blur"),
    "tensors": (f"tensors = 3\n{SEQUENCE}", r"r\.toml: tensors: found 3; expected a table"),
    "tensor's key": (f'{SEQUENCE}[tensors."*"]\nmetod = "mse"', r"r\.toml: settings of tensors '\*': found key 'm"),
    "tensor's method": (f'{SEQUENCE}[tensors."*"]\nmethod = "max"', r"r\.toml: calibration method: found max"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_recipe(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    (tmp_path / "r.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    np.save(tmp_path / "long.npy", np.ones((40, 3), np.float32))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EdgeLstmError, match=message) as caught:
        calibrate(zoo.lstm(), recipe=tmp_path / "r.toml", output=tmp_path / "c.json", threads=1)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
