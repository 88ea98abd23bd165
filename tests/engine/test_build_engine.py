"""build-engine with the real TensorRT for RTX, which builds on machines without a GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import zoo
from command_line import Run
from edgelstm import machine
from edgelstm.engine import process, versions
from edgelstm.engine.build import BuildOptions, BuiltEngine, build_engine, parse_size, parse_streams
from edgelstm.engine.inspect import inspect_engine, read_layer
from edgelstm.engine.precisions import product_precisions
from edgelstm.engine.process import Request, build_in_child
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.lower import lower
from edgelstm.runtime.sidecar import load_sidecar, sidecar_path
from edgelstm.workflows.quantize import quantize
from recordings import calibrated
from stepping import from_text

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt-rtx-cu13: pip install 'edgelstm[rtx]'",
)
NO_GPU = pytest.mark.skipif(bool(machine.cuda()), reason="says what happens without a GPU")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    zoo.conv_lstm(4, 8, 8).save(path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltEngine:
    """An engine of that model, to read only, with every option as it is."""
    folder = tmp_path_factory.mktemp("built")
    zoo.conv_lstm(4, 8, 8).save(folder / "model.onnx")
    return build_engine(folder / "model.onnx", folder / "m.plan")


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(EdgeLstmError) as caught:
        build_engine(*arguments, **{"runtime": "tensorrt-rtx", "gates": "native", **options})
    return str(caught.value)


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"model.onnx"}


def test_the_same_input_twice_gives_the_same_sidecar(model: Path, tmp_path: Path) -> None:
    phases: list[tuple[str, int, int]] = []
    options = BuildOptions((1, 2, 4), optimization_level=1)
    plans = [
        build_engine(
            model,
            tmp_path / name,
            options,
            runtime="tensorrt-rtx",
            gates="native",
            progress=lambda *p: phases.append(p),
        ).plan
        for name in ("a.plan", "b.plan")
    ]
    a, b = (sidecar_path(plan).read_bytes() for plan in plans)
    assert a == b
    sidecar = load_sidecar(plans[0])
    assert sidecar == load_sidecar(plans[1])
    assert sidecar.signature == StepModel.load(model).signature
    assert (sidecar.streams, sidecar.precision, sidecar.gates) == ((1, 2, 4), ("fp32",), "native")
    assert sidecar.options == {"optimization_level": 1}
    assert len(phases) > 10
    assert written(tmp_path) == {"a.plan", "a.plan.json", "b.plan", "b.plan.json"}
    assert str(tmp_path) not in a.decode()  # files move between machines


def test_what_can_be_asked_for(model: Path, tmp_path: Path) -> None:
    options = BuildOptions(
        workspace=2**28, tf32=True, version_compatible=False, targets=("8.6", "8.9"), optimization_level=0
    )
    built = build_engine(model, tmp_path / "m.engine", options, runtime="tensorrt-rtx", calibration=model)
    assert built.sidecar.targets == ("8.6", "8.9")
    assert built.sidecar.options == {"workspace": 2**28, "tf32": True, "optimization_level": 0}
    assert built.sidecar.hashes["calibration"] == built.sidecar.hashes["onnx"]


def test_several_profiles(model: Path, tmp_path: Path, built: BuiltEngine) -> None:
    """The real builder takes them; each serves the streams up to what it is tuned for."""
    options = BuildOptions((1, 4, 8), also=(1, 8, 4), optimization_level=0)
    several = build_engine(model, tmp_path / "m.plan", options, runtime="tensorrt-rtx", gates="native")
    assert several.sidecar.options["profiles"] == [[1, 1, 1], [2, 4, 4], [5, 8, 8]]
    assert load_sidecar(several.plan) == several.sidecar
    assert "profiles" not in built.sidecar.options
    assert "streams to tune for: found 4, 9; expected 1 to 8" in refused(
        model, tmp_path / "x.plan", options=BuildOptions((1, 4, 8), also=(9,))
    )


@NO_GPU
def test_auto_without_a_gpu_is_native_and_says_so(built: BuiltEngine) -> None:
    assert built.sidecar.gates == "native"
    assert built.notes == ("gates native: no GPU here to time the plugin on",)


@pytest.mark.parametrize("precision", ["int8", "fp16", pytest.param("fp8", marks=pytest.mark.thorough)])
def test_precision_is_the_graphs(precision: str, tmp_path: Path) -> None:
    step = zoo.conv_lstm(4, 8, 8)
    made = quantize(
        step, None if precision == "fp16" else calibrated(step), runtime="tensorrt", precision=precision
    )
    made.step.save(tmp_path / "q.onnx")
    built = build_engine(tmp_path / "q.onnx", tmp_path / "q.plan", runtime="tensorrt-rtx")
    assert built.sidecar.precision == (precision,) == product_precisions(made.step)


def test_a_precision_a_target_lacks_is_refused_before_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = zoo.conv_lstm(4, 8, 8)
    quantize(step, calibrated(step), tmp_path / "q.onnx", runtime="tensorrt", precision="fp8")
    monkeypatch.setattr(process.subprocess, "Popen", None)  # nothing may start
    text = refused(tmp_path / "q.onnx", tmp_path / "q.plan", options=BuildOptions(targets=("8.6",)))
    assert "Ampere (compute capability 8.6) does not multiply in fp8" in text


def test_a_graph_for_the_cpu_is_refused(tmp_path: Path) -> None:
    step = zoo.conv_lstm(4, 8, 8)
    quantize(step, calibrated(step), tmp_path / "q.onnx", runtime="onnxruntime")
    text = refused(tmp_path / "q.onnx", tmp_path / "q.plan")
    assert "is quantised for ONNX Runtime" in text
    assert "--runtime tensorrt" in text


def test_plugin_nodes_never_reach_a_library_without_plugins(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.subprocess, "Popen", None)
    assert "no plugins" in refused(model, tmp_path / "m.plan", gates="plugin")
    low = lower(zoo.conv_lstm(), "tensorrt", "plugin")
    (tmp_path / "plugged.onnx").write_bytes(low.to_bytes())
    assert "FusedGates" in refused(tmp_path / "plugged.onnx", tmp_path / "m.plan")
    assert not written(tmp_path) - {"plugged.onnx"}


def unsupported(tmp_path: Path) -> Path:
    step = from_text(
        "g (float[N, 2, 2] x, float[N] s) => (float[N] y, float[N] s2)\n"
        "{ d = Det(x)\n y = Add(d, s)\n s2 = Identity(y) }",
        s="s2",
    )
    model = step.copy_model()
    model.graph.node[0].name = "determinant"
    StepModel(model, step.signature).save(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    text = refused(unsupported(tmp_path), tmp_path / "m.plan")
    assert "can't parse" in text
    assert "'determinant' (Det)" in text
    assert not written(tmp_path)


def test_a_failing_build_leaves_what_was_there(tmp_path: Path, model: Path, built: BuiltEngine) -> None:
    for path in (built.plan, sidecar_path(built.plan)):
        shutil.copy(path, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("m.plan*")}
    unsupported(tmp_path)
    refused(model, tmp_path / "m.plan")
    assert {path: path.read_bytes() for path in tmp_path.glob("m.plan*")} == before


def test_a_builder_that_dies_is_one_clear_error(shared_dir: Path, tmp_path: Path) -> None:
    """DTLN's first model as it stands: its LSTM operators make the builder abort or fail inside."""
    path = shared_dir / "models" / "dtln" / "model_1.onnx"
    request = Request("tensorrt-rtx", str(path), str(tmp_path / "p"), "edgelstm-x", ((1, 1, 1),))
    with pytest.raises(EdgeLstmError) as caught:
        build_in_child(request, "model_1.onnx")
    assert "model_1.onnx" in str(caught.value)
    assert caught.value.found


def test_a_process_that_is_killed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", _script(tmp_path, "kill -9 $$"))
    text = refused(model, tmp_path / "m.plan")
    assert "crashed on" in text
    assert "SIGKILL" in text
    assert "memory runs out" in text
    assert written(tmp_path) == {"python"}


def test_a_library_that_prints_nonsense(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", _script(tmp_path, "echo hello; echo '[1]'; echo lost >&2; exit 3"))
    assert "found lost" in refused(model, tmp_path / "m.plan")


def _script(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": "m.onnx"}, "expected .plan or .engine"),
        ({"output": "missing/m.plan"}, "no such folder"),
        ({"options": BuildOptions((2, 1, 4))}, "1 <= fewest <= usual <= most"),
        ({"options": BuildOptions(targets=("3.5",))}, "compute capability: found 3.5"),
        ({"options": BuildOptions(dla_core=0)}, "no DLA cores"),
        ({"options": BuildOptions(gpu_fallback=True)}, "without a DLA core"),
        ({"timing_cache": "t.cache"}, "no timing cache"),
        ({"runtime": "tensorrt-lite"}, "expected one of tensorrt, tensorrt-rtx"),
        ({"gates": "fast"}, "expected one of native, plugin, auto"),
        ({"calibration": "missing.json"}, "does not exist"),
    ],
)
def test_bad_options(model: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    output = tmp_path / options.pop("output", "m.plan")
    assert says in refused(model, output, **options)
    assert not written(tmp_path)


@pytest.mark.skipif("tensorrt" in versions.installed(), reason="says what happens without TensorRT")
def test_without_tensorrt(model: Path, tmp_path: Path) -> None:
    text = refused(model, tmp_path / "m.plan", runtime="tensorrt")
    assert "TensorRT is not installed" in text
    assert "edgelstm[tensorrt]" in text


def test_a_fixed_stream_axis(tmp_path: Path) -> None:
    zoo.lstm(axis=2).save(tmp_path / "model.onnx")
    built = build_engine(tmp_path / "model.onnx", tmp_path / "m.plan", runtime="tensorrt-rtx")
    assert built.sidecar.streams == (2, 2, 2)
    text = refused(tmp_path / "model.onnx", tmp_path / "n.plan", options=BuildOptions((1, 3, 3)))
    assert "takes 2 streams in every call" in text


def test_what_is_typed() -> None:
    assert parse_streams("4") == (1, 4, 4)
    assert parse_streams("1:2:8") == (1, 2, 8)
    assert [parse_size(t) for t in ("512MiB", "1kB", "7", "1.5 GiB")] == [2**29, 1000, 7, 3 * 2**29]
    for bad in ("0", "1:2", "3:2:8", "-1", "a", "1:2:3:4", ""):
        with pytest.raises(EdgeLstmError, match="--streams"):
            parse_streams(bad)
    for bad in ("", "0", "MiB", "-5", "5 parsecs"):
        with pytest.raises(EdgeLstmError, match="--workspace"):
            parse_size(bad)


def test_the_command_line(model: Path, tmp_path: Path, run: Run) -> None:
    plan = tmp_path / "m.plan"
    code, text, _ = run(
        "build-engine", model, "-o", plan, "--runtime", "tensorrt-rtx", "--streams", "2", "--json"
    )
    assert code == 0
    told = json.loads(text)
    assert (told["plan"], told["engine"]["streams"]) == (str(plan), [1, 2, 2])
    code, text, _ = run("inspect", plan)
    assert code == 0
    assert "tensorrt-rtx" in text
    assert "streams: 1:2:2" in text
    code, text, _ = run("inspect", plan, "--json")
    assert json.loads(text)["engine"] == told["engine"]
    sidecar_path(plan).unlink()
    code, text, err = run("inspect", plan)
    assert (code, text) == (2, "")
    assert "has no sidecar" in err
    code, _, err = run("build-engine", model, "-o", plan, "--workspace", "lots")
    assert code == 2
    assert "--workspace lots" in err


@NO_GPU
def test_inspection_without_a_gpu(built: BuiltEngine) -> None:
    found = inspect_engine(built.plan)
    assert found.layers is None
    assert found.reformats is None
    assert "No NVIDIA GPU" in str(found.note)


def test_layers_as_the_inspector_tells_them() -> None:
    entry = {
        "Name": "z",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "xh", "Format/Datatype": "Int8"}],
        "TacticName": "sm80_xmma_fprop",
    }
    assert read_layer(entry).reads == ("Int8",)
    assert read_layer(entry).kernel == "sm80_xmma_fprop"
    assert read_layer("z").kind == "unknown"
