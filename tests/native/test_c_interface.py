"""The C library beside the Python Runner: the same bits, snapshots that move between them, threads, the header."""

from __future__ import annotations

import io
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import c_library
import zoo
from c_library import Program, Refused, Stream
from edgelstm.dtypes import np_dtype
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.passes.unroll import unroll
from edgelstm.runtime import Runner
from edgelstm.runtime.snapshot import Snapshot

Array = np.ndarray[Any, Any]


def integers_first() -> StepModel:
    """States of four types; the first is none that NaN can get into."""
    types = {"count": "int32", "half": "float16", "flag": "bool", "level": "float32"}
    nodes = [
        helper.make_node("Cast", ["x"], [f"x_{s}"], to=helper.np_dtype_to_tensor_dtype(np.dtype(t)))
        for s, t in types.items()
    ]
    nodes += [
        helper.make_node("Xor" if t == "bool" else "Add", [s, f"x_{s}"], [f"{s}_next"])
        for s, t in types.items()
    ]
    nodes.append(helper.make_node("Neg", ["level_next"], ["y"]))
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", 2, 3)),),
        outputs=(TensorSpec("y", "float32", ("N", 2, 3)), TensorSpec("half_next", "float16", ("N", 2, 3))),
        states=tuple(StateSpec(s, s, f"{s}_next", t, ("N", 2, 3)) for s, t in types.items()),
    )
    return make_step(nodes, signature, [])


MODELS: dict[str, Callable[[], StepModel]] = {
    "lstm": zoo.lstm,
    "conv-lstm": zoo.conv_lstm,
    "two inputs, an integer state": zoo.two_inputs,
    "numbers without axes": zoo.running_sum,
    "one stream a call": lambda: zoo.lstm(axis=1),
    "five streams in every call": lambda: zoo.lstm(axis=5),
    "states of other types": integers_first,
    "a window": lambda: unroll(zoo.lstm(), 3),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    MODELS[request.param]().save(path)
    return path


@pytest.fixture
def lstm(tmp_path: Path) -> Path:
    path = tmp_path / "lstm.onnx"
    zoo.lstm().save(path)
    return path


def opened(model: Path, streams: int) -> Runner:
    return Runner.open(model, streams=streams, threads=1, on_bad_frame="pass", native=False)


def frame_of(signature: Signature, rng: np.random.Generator) -> dict[str, Array]:
    return {t.name: rng.normal(size=t.frame_shape).astype(np_dtype(t.dtype)) for t in signature.inputs}


def file_of(snapshot: Snapshot, folder: Path) -> bytes:
    snapshot.save(folder / "python.npz")
    return (folder / "python.npz").read_bytes()


def equal(found: dict[str, Array], expected: Any) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def test_a_hundred_frames_of_streams_that_come_and_go_have_the_runners_bits(
    model: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    with opened(model, 5) as runner, Program(model, streams=5) as program:
        names = ["a", "b", "c", "d", "e"]
        ours: dict[str, Stream] = {n: program.stream() for n in names}
        for name in names:
            assert ours[name].save() == file_of(runner.stream(name).snapshot(), tmp_path)
        for k in range(100):
            active = [n for n in names if rng.random() < (0.3 if k % 10 < 5 else 0.9)] or ["c"]
            rng.shuffle(active)
            frames = {n: frame_of(program.signature, rng) for n in active}
            if k == 40:
                frames[active[0]][program.signature.inputs[0].name][...] = np.nan
            found = program.step([(ours[n], frames[n]) for n in active])
            expected = runner.step(frames)
            for name, result in zip(active, found, strict=True):
                equal(result, expected[name])
            name = names[k % 5]
            assert ours[name].save() == file_of(runner.stream(name).snapshot(), tmp_path)
            if k % 17 == 3:
                ours[name].reset()
                runner.stream(name).reset()
            if k % 23 == 5:  # leaves, and another one takes its place
                ours[name].free()
                runner.stream(name).close()
                ours[name] = program.stream()
                runner.stream(name)


def test_snapshots_move_a_stream_between_python_and_c(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = StepModel.load(model).signature.rows
    with opened(model, rows) as runner, Program(model, streams=rows) as program:
        theirs, ours = runner.stream("s"), program.stream()
        frames = [frame_of(program.signature, rng) for _ in range(6)]
        for frame in frames[:3]:
            ours.step(frame)
        (tmp_path / "c.npz").write_bytes(ours.save())
        theirs.restore(Snapshot.load(tmp_path / "c.npz"))
        for frame in frames[3:]:
            equal(ours.step(frame), theirs.step(frame))
        ours.reset()
        ours.load(file_of(theirs.snapshot(), tmp_path))
        for frame in frames:
            equal(ours.step(frame), theirs.step(frame))


def test_plain_arrays_are_taken_as_python_takes_them(lstm: Path) -> None:
    with opened(lstm, 1) as runner, Program(lstm) as program:
        theirs, ours = runner.stream("s"), program.stream()
        theirs.step(np.ones(3, np.float32))
        held = io.BytesIO()
        np.savez(held, **dict(reversed(theirs.snapshot().items())))
        ours.load(held.getvalue())
        equal(ours.step(np.zeros(3, np.float32)), theirs.step(np.zeros(3, np.float32)))


def test_the_signature_is_the_files_own(model: Path) -> None:
    with Program(model, streams=StepModel.load(model).signature.rows) as program:
        assert program.signature == StepModel.load(model).signature
        assert program.json == StepModel.load(model).signature.dumps()


def test_nan_stays_in_its_stream(lstm: Path) -> None:
    with Program(lstm, streams=2) as program, Program(lstm, streams=2) as other:
        a, b, c, d = program.stream(), program.stream(), other.stream(), other.stream()
        bad, good = np.full(3, np.nan, np.float32), np.ones(3, np.float32)
        found = program.step([(a, bad), (b, good)])
        assert np.isnan(found[0]["y"]).all()
        equal(found[1], other.step([(c, good), (d, good)])[1])
        a.reset()
        assert np.isfinite(a.step(good)["y"]).all()


def test_threads_take_turns_and_a_stream_has_one_at_a_time(lstm: Path) -> None:
    x = np.ones(3, np.float32)
    with Program(lstm, streams=3) as program, Program(lstm) as alone:
        own, shared, expected = [program.stream(), program.stream()], program.stream(), alone.stream()
        for _ in range(200):
            wanted = expected.step(x)["y"]
        begin, taken, wrong = threading.Barrier(2), [0, 0], []

        def work(k: int) -> None:
            try:
                begin.wait()
                for _ in range(200):
                    last = own[k].step(x)["y"]
                    try:
                        shared.step(x)
                        taken[k] += 1
                    except Refused as error:
                        if error.code != c_library.BUSY:
                            raise
                if last.tobytes() != wanted.tobytes():
                    wrong.append("another result")
            except BaseException as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        expected.reset()
        for _ in range(sum(taken)):
            wanted = expected.step(x)["y"]
        assert shared.step(x)["y"].tobytes() == expected.step(x)["y"].tobytes()


def test_the_library_shows_its_functions_and_nothing_else() -> None:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(c_library.built().path)],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [line.split()[-1] for line in done.stdout.splitlines()]
    declared = re.findall(
        r"^EDGELSTM_API .*?(edgelstm_\w+)\(", (c_library.SOURCES / "edgelstm.h").read_text(), re.M
    )
    assert sorted(shown) == sorted(declared) == [
        "edgelstm_abi_version", "edgelstm_close", "edgelstm_open", "edgelstm_reset", "edgelstm_signature_json",
        "edgelstm_state_load", "edgelstm_state_save", "edgelstm_state_size", "edgelstm_step", "edgelstm_stream_free",
        "edgelstm_stream_new",
    ]  # fmt: skip


@pytest.mark.parametrize(("compiler", "standard"), [("cc", "c99"), ("c++", "c++11")])
def test_the_header_is_short_and_compiles(compiler: str, standard: str, tmp_path: Path) -> None:
    c_library.built()
    assert (c_library.SOURCES / "edgelstm.h").read_text().count("\n") < 150
    source = tmp_path / ("use.c" if compiler == "cc" else "use.cpp")
    source.write_text(
        '#include "edgelstm.h"\n'
        "int main(void) { edgelstm_options o = EDGELSTM_OPTIONS; return o.abi != EDGELSTM_ABI_VERSION; }\n"
    )
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
    command = [compiler, f"-std={standard}", *strict, "-fsyntax-only", f"-I{c_library.SOURCES}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_places_in_onnx_runtimes_interface_are_those_of_its_header(tmp_path: Path) -> None:
    header = c_library.ROOT.parent / "shared" / "onnxruntime-headers" / "1.21"
    if not header.is_dir():
        pytest.skip(
            "headers of ONNX Runtime are not here: ../shared/onnxruntime-headers beside the checkout is missing"
        )
    c_library.built()
    source = tmp_path / "abi.cpp"
    source.write_text(
        '#include <onnxruntime_c_api.h>\n#include "ort.h"\n'
        "#define X(place, name, ...) static_assert(offsetof(OrtApi, name) == place * sizeof(void*), #name);\n"
        "EDGELSTM_ORT_MORE(X)\n"
    )
    command = ["c++", "-std=c++17", "-fsyntax-only", f"-I{header}", f"-I{c_library.SOURCES}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["weights.bin", "w" * 150, "größe.bin"])
def test_a_model_is_known_by_its_weights_in_other_files_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.onnx"
    zoo.lstm().save(path)
    onnx.save_model(
        onnx.load(path), path, save_as_external_data=True, location=name, size_threshold=0, all_tensors_to_one_file=True
    )  # fmt: skip
    assert (tmp_path / name).is_file()
    with opened(path, 1) as runner, Program(path) as program:
        assert program.stream().save() == file_of(runner.stream("s").snapshot(), tmp_path)
