"""The C library on a GPU: on the stand-ins for the driver, for TensorRT's library and for ONNX Runtime's CUDA provider. What runs on those is
our code whole, and no GPU; see also the contract's tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import c_library
import zoo
from c_library import Program, refused
from edgelstm.engine.c_build import build_c, find_onnxruntime
from edgelstm.graph.step import StepModel
from edgelstm.runtime import Runner
from edgelstm.runtime.snapshot import Snapshot
from plugins.adapter_library import headers_of
from standins import cuda_driver, nvinfer
from standins.cuda_driver import StandInDriver
from standins.tensorrt_module import stand_in_tensorrt, write_plan

Array = np.ndarray[Any, Any]
X = np.ones(3, np.float32)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDriver]:
    """A GPU that is none. At its end everything has to be freed."""
    if reason := cuda_driver.missing():
        pytest.skip(reason)
    headers_of("10.3")
    monkeypatch.setenv("EDGELSTM_ONNXRUNTIME", str(find_onnxruntime()))
    monkeypatch.setenv("EDGELSTM_STANDIN_RUNTIME", str(find_onnxruntime()))
    monkeypatch.setenv("EDGELSTM_TENSORRT", str(nvinfer.built()))
    with cuda_driver.stand_in_driver() as driver:
        yield driver


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "lstm.plan"
    write_plan(zoo.lstm(), path, (1, 4, 8))
    return path


@pytest.fixture
def lstm(tmp_path: Path) -> Path:
    path = tmp_path / "lstm.onnx"
    zoo.lstm().save(path)
    return path


def on_provider(lstm: Path, **options: Any) -> Program:
    return Program(lstm, device="cuda", onnxruntime=str(nvinfer.provider()), **options)


def edited(plan: Path, **changes: Any) -> None:
    sidecar = Path(f"{plan}.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


@pytest.mark.parametrize("model", [zoo.lstm, zoo.conv_lstm, zoo.two_inputs, zoo.running_sum])
def test_outputs_and_snapshots_are_the_runners(
    model: Callable[[], StepModel], driver: StandInDriver, tmp_path: Path
) -> None:
    """On the same plan, which the stand-in for TensorRT's Python module opens there."""
    path, rng = tmp_path / "model.plan", np.random.default_rng(1)
    write_plan(model(), path, (1, 3, 6))
    with (
        stand_in_tensorrt(driver),
        Runner.open(path, streams=6, on_bad_frame="pass") as runner,
        Program(path, streams=6) as program,
    ):
        names = "abcdef"
        theirs, ours = {n: runner.stream(n) for n in names}, {n: program.stream() for n in names}
        for _ in range(30):
            active = [n for n in names if rng.random() < 0.5] or ["c"]
            frames = {
                n: {t.name: rng.normal(size=t.frame_shape).astype(t.dtype) for t in program.signature.inputs}
                for n in active
            }
            expected = {n: {k: a.copy() for k, a in o.items()} for n, o in runner.step(frames).items()}
            for n, found in zip(active, program.step([(ours[n], frames[n]) for n in active]), strict=True):
                for name, value in found.items():
                    np.testing.assert_allclose(value, expected[n][name], rtol=1e-5, atol=1e-6)
        for n in names:
            theirs[n].snapshot().save(tmp_path / "python.npz")
            ours[n].load((tmp_path / "python.npz").read_bytes())
            assert ours[n].save() == (tmp_path / "python.npz").read_bytes()
            theirs[n].restore(Snapshot.load(tmp_path / "python.npz"))


def test_a_call_is_a_graph_from_the_second_time_on(driver: StandInDriver, plan: Path) -> None:
    with Program(plan, streams=2) as program:
        a, b = program.stream(), program.stream()
        counts = []
        for _ in range(6):
            program.step([(a, X), (b, X)])
            counts.append(driver.live())
        # One for each of the two sides, then nothing more.
        assert [n - counts[0] for n in counts] == [0, 0, 1, 2, 2, 2]


def test_a_gpu_that_fails_is_an_error(driver: StandInDriver, plan: Path, lstm: Path) -> None:
    for program in (Program(plan), on_provider(lstm)):
        with program:
            stream = program.stream()
            stream.step(X)
            before = stream.save()
            stream.step(X)
            stream.load(before)
            driver.fail()
            y = np.full(2, 5, np.float32)
            piece = c_library.Piece(y.ctypes.data, y.nbytes)
            given = c_library.Piece(X.ctypes.data, X.nbytes)
            handle = (c_library.ctypes.c_void_p * 1)(stream.handle.value)
            refused(
                c_library.RUN,
                "GPU failed|TensorRT|ONNX Runtime",
                lambda h=handle, g=given, p=piece: c_library.checked(
                    c_library.functions().edgelstm_step,
                    h,
                    1,
                    c_library.ctypes.byref(g),
                    c_library.ctypes.byref(p),
                ),
            )
            assert (y == 5).all()
            cuda_driver._library().standin_configure(1, 8, 6, 0, cuda_driver.MEMORY, 13000)
            assert stream.save() == before


def test_what_is_no_device_is_said(driver: StandInDriver, plan: Path, lstm: Path) -> None:
    for path, device, code, match in (
        (lstm, "gpu", c_library.INVALID, "found 'gpu'"),
        (lstm, "cuda:", c_library.INVALID, "found 'cuda:'"),
        (plan, "cpu", c_library.INVALID, "an engine runs on a GPU"),
        (plan, "cuda:1", c_library.DEVICE, "found 1 GPU"),
        (lstm, "cuda", c_library.LIBRARY, "no CUDA provider"),
    ):
        assert refused(code, match, lambda p=path, d=device: Program(p, device=d)).hint
    with Program(lstm, device="cpu") as program:
        program.stream().step(X)


def test_a_gpu_with_too_little_memory(driver: StandInDriver, plan: Path, lstm: Path) -> None:
    size = plan.stat().st_size + 500  # room for the plan, not for what it needs
    for memory in (20, size):
        cuda_driver._library().standin_configure(1, 8, 6, 0, memory, 13000)
        refused(c_library.DEVICE, "too small|out of memory", lambda: Program(plan, streams=8))
    cuda_driver._library().standin_configure(1, 8, 6, 0, 20000, 13000)
    refused(c_library.DEVICE, "too small", lambda: on_provider(lstm, streams=500))
    cuda_driver._library().standin_configure(0, 0, 0, 0, 0, 0)
    refused(c_library.DEVICE, "no NVIDIA GPU", lambda: Program(plan))


@pytest.mark.parametrize(
    ("changes", "code", "match"),
    [
        ({"runtime": "tensorrt-rtx"}, c_library.MODEL, "tensorrt-rtx"),
        (
            {"version": "10.12.0.1"},
            c_library.LIBRARY,
            "another version of TensorRT: found 10.13.0, expected 10.12.0.1",
        ),
        ({"targets": ["8.7", "9.0"]}, c_library.DEVICE, r"8\.6\), expected 8.7 or 9.0"),
        ({"precision": ["fp8"]}, c_library.DEVICE, "fp8, which this GPU does not have"),
        (
            {"gpu": "another build"},
            c_library.MODEL,
            "not the plan that its sidecar tells of: engine edgelstm-",
        ),
        ({"gates": "plugin"}, c_library.LIBRARY, "needs our plugin"),
        ({"plan_bytes": 7}, c_library.MODEL, "expected 7"),
        ({"streams": [4, 1, 8]}, c_library.MODEL, "streams"),
        ({"schema": 2}, c_library.MODEL, "another schema"),
        ({"signature": {}}, c_library.MODEL, "schema"),
    ],
)
def test_a_plan_of_something_else_is_refused(
    driver: StandInDriver, plan: Path, changes: dict[str, Any], code: int, match: str
) -> None:
    edited(plan, **changes)
    assert refused(code, match, lambda: Program(plan)).hint


def test_files_of_an_engine_that_are_damaged(driver: StandInDriver, plan: Path, tmp_path: Path) -> None:
    refused(c_library.INVALID, "at most 8 streams", lambda: Program(plan, streams=9))
    whole, sidecar = plan.read_bytes(), Path(f"{plan}.json")
    plan.write_bytes(whole[:-9])
    refused(c_library.MODEL, "bytes, expected", lambda: Program(plan))
    plan.write_bytes(b"x" * len(whole))
    refused(c_library.MODEL, "TensorRT 10.13.0 can't open .*magic tag", lambda: Program(plan))
    plan.write_bytes(whole)
    sidecar.write_text(sidecar.read_text()[:-20])
    refused(c_library.MODEL, "at byte", lambda: Program(plan))
    sidecar.write_bytes(sidecar.read_bytes().replace(b"float32", b"float\xff\xff"))
    refused(c_library.MODEL, "no UTF-8", lambda: Program(plan))
    sidecar.unlink()
    refused(c_library.MODEL, "no sidecar", lambda: Program(plan))
    other = tmp_path / "other.plan"
    write_plan(zoo.conv_lstm(), other, (1, 4, 8))
    write_plan(zoo.lstm(), plan, (1, 4, 8))
    # The engine's name is right, its tensors are not: such a plan has the sidecar of this one.
    head, line, _ = plan.read_bytes().split(b"\n", 2)
    swapped = b"\n".join((head, line, other.read_bytes().split(b"\n", 2)[2]))
    plan.write_bytes(swapped)
    edited(plan, plan_bytes=len(swapped))
    refused(c_library.MODEL, "the engine and its sidecar disagree", lambda: Program(plan))


def test_names_of_engines_are_those_of_python(driver: StandInDriver, tmp_path: Path) -> None:
    """The hash of a sidecar as JSON: text of all kinds, numbers as they were written."""
    path = tmp_path / "any.plan"
    write_plan(
        zoo.lstm(), path, (1, 2, 4), gpu='größe "模型" 😀 \\ \t\x7f', options={"b": [1.5e-07, 1e300, -0.0, None, True], "a": {}}, hashes={"onnx": "x", "plan": "y"},
    )  # fmt: skip
    with Program(path) as program:
        program.stream().step(X)


def test_each_profile_takes_its_rows(driver: StandInDriver, tmp_path: Path) -> None:
    path = tmp_path / "profiles.plan"
    write_plan(zoo.running_sum(), path, (1, 4, 8), options={"profiles": [[1, 1, 1], [2, 3, 4], [5, 8, 8]]})
    with Program(path, streams=8) as program:
        streams = [program.stream() for _ in range(8)]
        for count in (1, 2, 8, 4, 5, 1, 3, 8, 8, 8):
            program.step([(s, np.array(1, np.float32)) for s in streams[:count]])


def test_libraries_that_are_not_tensorrt(driver: StandInDriver, plan: Path, tmp_path: Path) -> None:
    for given, match in (
        (tmp_path / "none.so", "cannot open shared object"),
        (tmp_path, "cannot open shared object"),
        (c_library.built().path, "another library"),
    ):
        assert refused(c_library.LIBRARY, match, lambda g=given: Program(plan, tensorrt=str(g))).hint
    source, old = tmp_path / "old.c", tmp_path / "libnvinfer.so.10"
    source.write_text(
        "int getInferLibVersion(void) { return 100200; }\nvoid *createInferRuntime_INTERNAL(void *a, int b) { (void)a; (void)b; return 0; }\n"
        "void *getPluginRegistry(void) { return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(old), str(source)], check=True)
    refused(
        c_library.LIBRARY,
        "TensorRT 10.2.0; .* headers of 10.3.0",
        lambda: Program(plan, tensorrt=str(tmp_path)),
    )


def test_without_a_driver_it_says_so(lstm: Path) -> None:
    """In a process of its own, which the stand-in was not loaded into."""
    if cuda_driver.missing() == "a real CUDA driver is here: tests/gpu runs instead":
        pytest.skip("a driver is here")
    c_library.built()
    code = f"import c_library\nc_library.Program({str(lstm)!r}, device='cuda')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{c_library.ROOT}:{c_library.ROOT / 'tests'}"},
    )  # fmt: skip
    assert f"{c_library.LIBRARY}: there is no NVIDIA driver here" in done.stderr


@pytest.mark.parametrize("version", ["10.13"])
def test_it_compiles_with_other_headers(version: str) -> None:
    headers = headers_of(version)
    c_library.built()
    command = [
        "c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-DEDGELSTM_TENSORRT", "-isystem", str(headers), "-idirafter",
        str(c_library.SOURCES / "cuda"), str(c_library.SOURCES / "tensorrt_engine.cpp"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
def test_a_library_without_tensorrt_opens_no_engine(plan: Path, tmp_path: Path) -> None:
    c_library.built()
    library = build_c(tmp_path / "plain", source=c_library.ROOT / "plugins")
    code = (
        f"import ctypes\nlibrary = ctypes.CDLL({str(library.path)!r})\nerror = ctypes.create_string_buffer(1024)\nhandle = ctypes.c_void_p()\n"
        f"print(library.edgelstm_open({os.fsencode(plan)!r}, None, ctypes.byref(handle), error), error.raw[4:].split(b'\\0')[0].decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{c_library.LIBRARY} ")
