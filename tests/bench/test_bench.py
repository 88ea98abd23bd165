"""bench: real workers on small models. Times are not judged here, only that each is measured and honest."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import native_library
import zoo
from contract.test_exact_products import PRODUCTS
from edgelstm.bench import BenchResult, bench
from edgelstm.bench.contestants import CONTESTANTS
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.native.library import VARIABLE
from stepping import from_text

ROUNDS, STEPS = 3, 20


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from edgelstm.frontends.torch import nn

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bench") / "lstm.safetensors"
    nn.save(nn.LSTM(3, [4, 5], outputs=2), path)
    return path


@pytest.fixture(scope="module")
def everyone(described: Path) -> BenchResult:
    """All contestants but torch-compile, which needs a C++ compiler and half a minute."""
    names = [name for name in CONTESTANTS if name != "torch-compile"]
    return bench([described], names, rounds=ROUNDS, steps=STEPS, threads=1)


def test_every_contestant_computes_the_same_model(everyone: BenchResult) -> None:
    for entry in everyone.models[0].entries:
        if entry.status == "missing":
            continue
        assert (entry.status, entry.note) == ("measured", None), entry
        assert entry.error is not None
        assert entry.error < 1e-5, entry


def test_ours_comes_first_and_is_what_ratios_are_of(everyone: BenchResult) -> None:
    first = everyone.models[0].entries[0]
    assert (first.contestant, first.ratio) == ("edgelstm", 1.0)


def test_times_are_of_every_step_of_every_round(everyone: BenchResult) -> None:
    for e in everyone.models[0].entries:
        if e.status == "measured":
            assert len(e.rounds) == ROUNDS
            assert 0 < e.best <= e.p50 <= e.p99
            assert min(e.rounds) <= e.p50 <= max(e.rounds)


def test_waiting_takes_hardly_any_processor_time(everyone: BenchResult) -> None:
    """Others must be measured undisturbed: thread pools may spin for a moment after a turn, not through others'."""
    for e in everyone.models[0].entries:
        if e.status == "measured":
            assert e.idle is not None
            assert e.idle < 0.1 * (ROUNDS + 2), e


def test_memory_is_that_of_the_contestant_s_own_process(everyone: BenchResult) -> None:
    by_name = {e.contestant: e for e in everyone.models[0].entries if e.status == "measured"}
    for e in by_name.values():
        assert e.memory is not None
        assert e.peak_memory is not None
        assert 0 < e.memory < e.peak_memory
    if "torch" in by_name:
        assert by_name["torch"].memory > 2 * by_name["edgelstm"].memory


def test_json_and_table(everyone: BenchResult) -> None:
    data = json.loads(json.dumps(everyone.to_json(), allow_nan=False))
    entry = data["models"][0]["entries"][0]
    assert (data["threads"], data["rounds"], data["steps"]) == (1, ROUNDS, STEPS)
    assert entry["contestant"] == "edgelstm"
    assert "onnxruntime" in data["versions"]
    assert everyone.table().row_count == len(everyone.models[0].entries)


@pytest.mark.parametrize(
    "kinds", [("codes", "two"), pytest.param(("conv", "codes", "two"), marks=pytest.mark.thorough)]
)
def test_several_streams_and_models(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    steps = {
        "codes": from_text(PRODUCTS["matrices"], h="t"),
        "conv": zoo.conv_lstm(),
        "two": zoo.two_inputs(),
    }
    paths = [tmp_path / f"{kind}.onnx" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        steps[kind].save(path)
    turns: list[int] = []
    names = ["edgelstm-bare", "onnxruntime"]
    result = bench(paths, names, rounds=2, steps=5, streams=3, threads=1, progress=turns.append)
    assert [m.model for m in result.models] == [str(p) for p in paths]
    assert sum(turns) == len(kinds) * 3 * 2  # models, contestants, rounds
    for model in result.models:
        assert [e.status for e in model.entries] == ["measured"] * 3
        # Of codes too, whose products are exact on every processor.
        assert all(e.error is not None and e.error < 1e-5 for e in model.entries), model
        assert all(e.error is not None and e.error < 1e-6 for e in model.entries)


@pytest.mark.parametrize("factory", ["lstm", pytest.param("Cell", marks=pytest.mark.thorough)])
def test_a_torch_module_for_a_graph(tmp_path: Path, factory: str) -> None:
    pytest.importorskip("torch")
    zoo.lstm(hidden=(2,), head=None).save(tmp_path / "lstm.onnx")
    module = f"{Path(__file__).parent / 'factories.py'}:{factory}"
    result = bench([tmp_path / "lstm.onnx"], ["torch"], module=module, rounds=1, steps=5, threads=1)
    entry = result.models[0]["torch"]
    assert entry.status == "measured", entry
    assert entry.error is not None
    assert entry.error > 1e-3, "the weights differ, and the comparison has to show it"


def test_a_contestant_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    zoo.lstm().save(tmp_path / "lstm.onnx")
    result = bench(
        [tmp_path / "lstm.onnx"], ["torch", "onnxruntime"], module="nosuch:thing", rounds=1, steps=5
    )
    torch, by_hand = result.models[0]["torch"], result.models[0]["onnxruntime"]
    assert torch.status == "failed"
    assert "nosuch" in (torch.note or "")
    assert torch.p50 is None
    assert by_hand.status == "measured"
    assert result.table().row_count == 3


def test_a_contestant_that_is_not_installed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.lstm().save(tmp_path / "lstm.onnx")
    monkeypatch.setitem(CONTESTANTS, "openvino", replace(CONTESTANTS["openvino"], package="no_such_package"))
    result = bench([tmp_path / "lstm.onnx"], ["openvino"], rounds=1, steps=5, threads=1)
    entry = result.models[0]["openvino"]
    assert (entry.status, entry.note) == ("missing", "pip install 'edgelstm[bench]'")


def test_bad_input_says_what_to_do(tmp_path: Path) -> None:
    model = tmp_path / "lstm.onnx"
    zoo.lstm().save(model)
    with pytest.raises(EdgeLstmError, match=r"unknown contestant: found tensorflow; expected .*openvino"):
        bench([model], ["tensorflow"])
    with pytest.raises(EdgeLstmError, match=r"for torch the torch module it came from is needed\..*--module"):
        bench([model], ["torch"])
    with pytest.raises(EdgeLstmError, match="rounds: found 0"):
        bench([model], rounds=0)
    with pytest.raises(EdgeLstmError, match="no model to measure"):
        bench([])
    with pytest.raises(EdgeLstmError, match="does not exist"):
        bench([tmp_path / "none.onnx"])
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:200])
    with pytest.raises(EdgeLstmError, match="not an ONNX file, or is truncated"):
        bench([tmp_path / "cut.onnx"])


def test_a_window_has_no_torch_module(tmp_path: Path) -> None:
    from edgelstm.passes.unroll import unroll

    unroll(zoo.lstm(), 4).save(tmp_path / "window.onnx")
    with pytest.raises(EdgeLstmError, match="is a window: the torch module takes one frame at a time"):
        bench([tmp_path / "window.onnx"], ["torch"], module="factories:lstm")
    result = bench([tmp_path / "window.onnx"], ["onnxruntime"], rounds=1, steps=5)
    assert result.models[0].frames == 4
    assert result.models[0]["edgelstm"].status == "measured"


@pytest.mark.thorough
def test_a_window_with_openvino(tmp_path: Path) -> None:
    from edgelstm.passes.unroll import unroll

    unroll(zoo.lstm(), 4).save(tmp_path / "window.onnx")
    result = bench([tmp_path / "window.onnx"], ["openvino"], rounds=1, steps=5)
    assert result.models[0].frames == 4
    assert [e.status for e in result.models[0].entries] == ["measured"] * len(result.models[0].entries)


def test_no_worker_outlives_the_benchmark(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "lstm.onnx")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench([tmp_path / "lstm.onnx"], rounds=3, steps=5, progress=interrupt)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this kernel does not list children")
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()]
    assert not [c for c in commands if "edgelstm.bench.worker" in c]


def test_seeded_frames_are_the_same_everywhere() -> None:
    from edgelstm.bench.job import Job

    job = Job("edgelstm", "m", "p", zoo.two_inputs().signature.dumps(), "f", streams=2, seed=3)
    again = Job.loads(job.dumps())
    assert again == job
    for a, b in zip(job.frames(), again.frames(), strict=True):
        assert {n: x.shape for n, x in a.items()} == {"a": (2, 2), "b": (2, 2)}
        assert all(np.array_equal(a[n], b[n]) for n in a)


def test_with_our_operators_a_model_is_measured_with_and_without_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(native_library.built()))
    monkeypatch.setenv("EDGELSTM_NATIVE", "")
    path = tmp_path / "model.onnx"
    zoo.lstm().save(path)
    (model,) = bench([path], [], rounds=1, steps=2, threads=1).models
    assert [e.contestant for e in model.entries] == ["edgelstm", "edgelstm-plain"]
    assert [e.status for e in model.entries] == ["measured", "measured"]
    assert 0 < (model["edgelstm-plain"].error or 0) < 1e-5  # other roundings, so other code ran
