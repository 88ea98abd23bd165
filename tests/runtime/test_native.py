"""Step graphs opened with our own operators: which cells become one, that the numbers stay, and what happens where it can't be."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

import native_library
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.qdq import quantize
from edgelstm.runtime import Runner
from edgelstm.runtime.native import library as module
from edgelstm.runtime.native import prepare as preparing
from edgelstm.runtime.native.cells import rewrite, variant_attributes
from edgelstm.runtime.native.library import FILE_NAME, VARIABLE, cached_place, machine_name
from edgelstm.runtime.onnxruntime import OrtProgram
from recordings import all_weights, calibrated
from stepping import from_text
from tolerances import assert_close

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user's, and no variable set; gives the library's place in it."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("EDGELSTM_NATIVE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(preparing, "_said", set())
    return cached_place()


def counts(step: StepModel, threads: int = 1) -> dict[str, int]:
    """How many of our operators a graph gets."""
    found = rewrite(step.to_bytes(), threads)
    if found is None:
        return {}
    onnx.load_model_from_string(found.data)
    return dict(found.counts)


def compare_streamed(step: StepModel, library: Path, *, streams: int = 3, steps: int = 5) -> OrtProgram:
    """Streams with our operators and without, some of them idle now and then, by the same frames."""
    native = native_library.opened(step.to_bytes(), library, streams=streams, threads=1)
    assert native.native is not None
    rng = np.random.default_rng(1)
    with Runner(native) as a, Runner(OrtProgram(step.to_bytes(), streams=streams, threads=1)) as b:
        names = [f"s{k}" for k in range(streams)]
        for runner in (a, b):
            for name in names:
                runner.stream(name)
        for k in range(steps):
            frames = {
                name: {
                    t.name: rng.normal(size=t.frame_shape).astype(np.float32) for t in step.signature.inputs
                }
                for j, name in enumerate(names)
                if (j + k) % 3
            }
            idle = {n: a.stream(n).snapshot() for n in names if n not in frames}
            found, expected = a.step(frames), b.step(frames)
            for name in frames:
                for output, value in expected[name].items():
                    assert_close(found[name][output], value, np.float32, k=500)
            for name, before in idle.items():
                for state, value in a.stream(name).snapshot().items():
                    assert value.tobytes() == before[state].tobytes()
    return native


def gru(text: str, after: bool, *, units: int = 5, inputs: int = 3) -> StepModel:
    """A GRU whose equations are given as ONNX text, over x, h and the weights of ``after`` kind."""
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[N,{inputs}] x, float[N,{units}] h) => (float[N,{units}] y) {{ {text} }}'
    )
    rng = np.random.default_rng(3)
    both = inputs + units
    shapes = {
        "w_zr": (2 * units, both), "b_zr": (2 * units,), "w_x": (3 * units, inputs), "w_h": (3 * units, units),
        "b_x": (3 * units,), "b_h": (3 * units,), "w_n": (units, inputs), "r_n": (units, units), "b_n": (units,), "w_both": (units, both),
        "m_x": (inputs, units), "m_h": (units, units), "c": (units,),
    }  # fmt: skip
    used = {name for node in model.graph.node for name in node.input}
    for name, shape in shapes.items():
        if name in used:
            value = rng.normal(0, 0.5, shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", inputs)),),
        outputs=(TensorSpec("y", "float32", ("N", units)),),
        states=(StateSpec("h", "h", "y", "float32", ("N", units)),),
    )
    return StepModel(model, signature)


JOINED = """xh = Concat <axis = 1> (x, h)
    zr = Gemm <transB = 1> (xh, w_zr, b_zr)
    gates = Sigmoid (zr)
    z, r = Split <axis = 1, num_outputs = 2> (gates)"""
BEFORE = f"""{JOINED}
    rh = Mul (r, h)
    xrh = Concat <axis = 1> (x, rh)
    s = Gemm <transB = 1> (xrh, w_both, b_n)
    n = Tanh (s)"""
AFTER = f"""{JOINED}
    n_x = Gemm <transB = 1> (x, w_n, b_n)
    n_h = Gemm <transB = 1> (h, r_n, c)
    reset = Mul (n_h, r)
    s = Add (reset, n_x)
    n = Tanh (s)"""
TORCH = """g_x = Gemm <transB = 1> (x, w_x, b_x)
    g_h = Gemm <transB = 1> (h, w_h, b_h)
    r_x, z_x, n_x = Split <axis = 1, num_outputs = 3> (g_x)
    r_h, z_h, n_h = Split <axis = 1, num_outputs = 3> (g_h)
    s_z = Add (z_h, z_x)
    s_r = Add (r_x, r_h)
    z = Sigmoid (s_z)
    r = Sigmoid (s_r)
    reset = Mul (r, n_h)
    s = Add (n_x, reset)
    n = Tanh (s)"""
SPELT_OUT = """p_x = MatMul (x, m_x)
    p_h = MatMul (h, m_h)
    p = Add (p_x, p_h)
    s_z = Add (p, c)
    z = HardSigmoid <alpha = 0.2, beta = 0.5> (s_z)
    s_r = Add (c, p)
    r = HardSigmoid <alpha = 0.2, beta = 0.5> (s_r)
    rh = Mul (h, r)
    q = MatMul (rh, m_h)
    s_n = Add (q, p_x)
    s = Add (s_n, b_n)
    n = Tanh (s)"""
MOVE = "d = Sub (h, n)\n m = Mul (d, z)\n y = Add (m, n)"
BLEND = "k = Mul (z, h)\n o = Sub (one, z)\n m = Mul (n, o)\n y = Add (k, m)"
#: x chooses what is gathered: a large one is out of bounds.
MOVE_BAD = """d = Sub (h, n)
    m = Mul (d, z)
    k = Add (m, n)
    index = Cast <to = 7> (x)
    chosen = Gather <axis = 0> (c, index)
    y = Add (k, chosen)"""
MOVE_TURNED = "d = Sub (n, h)\n m = Mul (z, d)\n y = Add (h, m)"
BLEND_TURNED = "k = Mul (z, n)\n o = Sub (one, z)\n m = Mul (o, h)\n y = Add (m, k)"


@pytest.mark.parametrize("end", [MOVE, BLEND, MOVE_TURNED, BLEND_TURNED])
@pytest.mark.parametrize(
    ("start", "after"), [(BEFORE, False), (AFTER, True), (TORCH, True), (SPELT_OUT, False)]
)
def test_a_gru_is_found_however_it_is_written(library: Path, start: str, after: bool, end: str) -> None:
    step = gru(f"{start}\n{end}", after)
    assert counts(step) == {"FusedGRUCell": 1}
    compare_streamed(step, library)


@pytest.mark.parametrize(
    "change",
    [
        ("n = Tanh (s)", "n = Softsign (s)"),
        ("gates = Sigmoid (zr)", "gates = Tanh (zr)"),
        ("d = Sub (h, n)", "d = Sub (h, x)"),
        ("rh = Mul (r, h)", "rh = Mul (r, r)"),
        ("Gemm <transB = 1> (xh", "Gemm <transB = 1, alpha = 2.0> (xh"),
    ],
)
def test_what_is_no_gru_stays_as_it_is(change: tuple[str, str]) -> None:
    text = f"{BEFORE}\n{MOVE}"
    assert change[0] in text
    assert counts(gru(text.replace(*change), False, inputs=5)) == {}


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (zoo.lstm(), {"FusedLSTMCell": 2}),
        (zoo.lstm(1, (1,), head=None), {"FusedLSTMCell": 1}),
        (zoo.lstm(7, (37, 5)), {"FusedLSTMCell": 2}),
        (zoo.conv_lstm(), {"FusedGates": 1}),
        (zoo.conv_lstm(peephole=False, size=7), {"FusedGates": 1}),
        (unroll(zoo.lstm(), 4), {"FusedLSTMCell": 8}),
        (unroll(zoo.lstm(7, (37,)), 3), {"FusedLSTMCell": 3}),
    ],
    ids=["lstm", "one unit", "prime sizes", "peepholes on maps", "maps", "window", "window of prime sizes"],
)
def test_streams_give_the_same_with_our_operators(
    library: Path, step: StepModel, wanted: dict[str, int]
) -> None:
    assert counts(step) == wanted
    compare_streamed(step, library)


def test_gates_after_a_quantised_convolution_read_its_codes(library: Path) -> None:
    step = zoo.conv_lstm(2, 3, 7)
    quantised = quantize(step, calibrated(step), weights=all_weights(step))
    assert counts(quantised) == {"FusedGatesU8QuantizeLinearU8": 1}
    frames = [np.float32(np.sin(k + np.arange(2 * 7 * 7))).reshape(2, 7, 7) for k in range(5)]
    native = native_library.opened(quantised.to_bytes(), library, threads=1)
    assert native.native is not None
    with Runner(native) as a, Runner(OrtProgram(quantised.to_bytes(), threads=1)) as b:
        one, other = a.stream("one"), b.stream("one")
        for frame in frames:
            found, expected = one.step(frame), other.step(frame)
            for name, value in expected.items():
                assert_close(found[name], value, np.float32, k=500)


def test_for_many_streams_large_products_are_left_to_onnx_runtime(library: Path) -> None:
    step = zoo.lstm(3, (67, 131))
    program = native_library.opened(step.to_bytes(), library, streams=5, threads=1)
    assert program.native is not None
    assert dict(program.native.counts) == {"FusedLSTMCell": 1, "FusedGates": 1}
    compare_streamed(step, library, streams=7, steps=3)
    with pytest.raises(EdgeLstmError, match="For more than 4 streams cells of more than 65536 weights"):
        native_library.opened(
            gru(f"{TORCH}\n{MOVE}", True, units=150).to_bytes(), library, streams=5, native=True
        )


def test_an_error_inside_a_step_is_onnx_runtime_s_own_and_moves_no_stream(library: Path) -> None:
    step = gru(f"{BEFORE}\n{MOVE_BAD}", False, inputs=5)
    program = native_library.opened(step.to_bytes(), library, threads=1)
    assert program.native is not None
    with Runner(program) as runner:
        stream = runner.stream("one")
        stream.step(np.zeros(5, np.float32))
        before = stream.snapshot()
        with pytest.raises(EdgeLstmError, match="ONNX Runtime failed in a step"):
            stream.step(np.full(5, 99, np.float32))
        assert stream.snapshot()["h"].tobytes() == before["h"].tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_a_frame_that_is_not_finite_is_seen_before_anything_moves(
    library: Path, bad: float, place: int
) -> None:
    step = zoo.lstm()
    frame = np.full(3, 3e38, np.float32)  # finite, though its sum is not
    broken = frame.copy()
    broken[place] = bad
    for policy, given_ in (
        ("error", None),
        ("skip", None),
        ("zero", np.where(np.isfinite(broken), broken, 0)),
        ("pass", broken),
    ):
        program, plain = (
            native_library.opened(step.to_bytes(), library, threads=1),
            OrtProgram(step.to_bytes(), threads=1),
        )
        with Runner(program, on_bad_frame=policy) as a, Runner(plain, on_bad_frame="pass") as b:  # type: ignore[arg-type]
            one, other = a.stream("one"), b.stream("one")
            y = one.step(frame, copy=True)
            other.step(frame)
            before = one.snapshot()
            if policy == "error":
                with pytest.raises(EdgeLstmError, match="NaN"):
                    one.step(broken)
            elif policy == "skip":
                assert one.step(broken) == {}
                assert one.skipped == 1
            if given_ is None:
                assert all(a.tobytes() == before[n].tobytes() for n, a in one.snapshot().items())
                assert one.frames == 1
                assert one.undo()  # the last step is still the last
                assert_close(one.step(frame)["y"], y["y"], np.float32)
            else:
                found, expected = one.step(broken)["y"], other.step(given_)["y"]
                assert np.array_equal(np.isnan(found), np.isnan(expected))
                assert_close(np.nan_to_num(found), np.nan_to_num(expected), np.float32, k=500)


def test_a_step_of_one_stream_is_found_too(library: Path) -> None:
    compare_streamed(zoo.lstm(axis=1), library)


@given(
    hard=st.one_of(st.none(), st.tuples(*[st.floats(-3, 3, width=32)] * 2)),
    peephole=st.booleans(),
    candidate=st.sampled_from(["tanh", "relu"]),
    output=st.sampled_from(["tanh", "relu"]),
    clip=st.one_of(st.none(), st.floats(0.1, 1e3)),
    coupled=st.booleans(),
    coded=st.booleans(),
)
def test_names_of_variants_are_read_as_gates_py_reads_them(
    hard: tuple[float, float] | None,
    peephole: bool,
    candidate: Any,
    output: Any,
    clip: float | None,
    coupled: bool,
    coded: bool,
) -> None:
    given_: dict[str, Any] = {"gate": "hard_sigmoid", "alpha": hard[0], "beta": hard[1]} if hard else {}
    variant = GateVariant(
        peephole=peephole,
        candidate=candidate,
        output=output,
        cell_clip=clip,
        coupled=coupled,
        coded=coded,
        **given_,
    )
    found = variant_attributes(variant.op_type)
    assert found is not None
    defaults: dict[str, Any] = dict.fromkeys(variant.plugin_fields(), 0) | {"alpha": 0.2, "beta": 0.5}
    assert {**defaults, **found} == variant.plugin_fields()
    assert variant_attributes(f"{variant.op_type}_later") is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bytes_that_are_no_graph_are_left_to_onnx_runtime(data: st.DataObject) -> None:
    whole = zoo.lstm().to_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(
        whole[:start] + data.draw(st.binary(max_size=20)) + whole[start + data.draw(st.integers(0, 9)) :]
    )
    found = rewrite(bytes(changed), 1)  # whatever it makes of that, it must not fail
    assert found is None or isinstance(found.data, bytes)


def test_other_precisions_stay_as_they_are() -> None:
    step = zoo.lstm()
    model = step.copy_model()
    half = onnx.numpy_helper.from_array(np.zeros(3, np.float16), "unused")
    model.graph.initializer.append(half)
    assert rewrite(model.SerializeToString(), 1) is None


# ---- the library


def test_without_a_library_everything_is_as_it_was(cache: Path) -> None:
    program = OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None)
    assert program.native is None
    with pytest.raises(EdgeLstmError, match="edgelstm build-plugin --ort"):
        OrtProgram(zoo.lstm().to_bytes(), threads=1, native=True)


def test_it_is_found_in_the_cache_and_can_be_turned_off(
    cache: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(library.read_bytes())
    path = tmp_path / "model.onnx"
    zoo.lstm().save(path)
    before = path.read_bytes()
    with Runner.open(path, threads=1) as runner:
        assert dict(runner._program.native.counts) == {"FusedLSTMCell": 2}  # type: ignore[attr-defined]
    with Runner.open(path, threads=1, native=False) as runner:
        assert runner._program.native is None  # type: ignore[attr-defined]
    monkeypatch.setenv("EDGELSTM_NATIVE", "0")
    with Runner.open(path, threads=1) as runner:
        assert runner._program.native is None  # type: ignore[attr-defined]
    monkeypatch.setenv("EDGELSTM_NATIVE", "maybe")
    with pytest.raises(EdgeLstmError, match="EDGELSTM_NATIVE=maybe"):
        Runner.open(path, threads=1)
    assert path.read_bytes() == before


def test_a_named_library_that_is_missing_is_an_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(EdgeLstmError, match="names no file"):
        OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None)


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (b'{"schema": 99, "machine": "%s", "sources": ""}', "another version of edgelstm"),
        (b'{"schema": 5, "machine": "riscv64%.0s", "sources": ""}', "another processor"),
        (b'{"schema": "1", "machine": "%s", "sources": ""}', "is not the library"),
        (b"{%.0s", "is not the library"),
    ],
)
def test_a_library_that_does_not_fit_is_named_once_and_the_model_runs_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, info: bytes, said: str
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"\x7fELF\0edgelstm-native " + info % machine_name().encode() + b"\0")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None).native is None
    assert len(caplog.records) == 1
    assert said in caplog.text
    monkeypatch.setenv(VARIABLE, str(cache))  # whoever names it means it
    with pytest.raises(EdgeLstmError, match=said):
        OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None)


def test_a_library_of_the_schema_before_is_refused_though_it_loads(
    cache: Path, library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its operators have the same names, and other meanings: a real one, which says that it is of the schema before."""
    now, before = f'"schema": {module.SCHEMA}'.encode(), f'"schema": {module.SCHEMA - 1}'.encode()
    data = library.read_bytes()
    assert data.count(now) == 1
    cache.parent.mkdir(parents=True)
    cache.write_bytes(data)
    assert OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None).native is not None
    cache.unlink()  # what is loaded stays as it was
    cache.write_bytes(data.replace(now, before))
    with caplog.at_level(logging.WARNING):
        assert OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None).native is None
    said = f"found schema {module.SCHEMA - 1}; expected schema {module.SCHEMA}"
    assert said in caplog.text
    monkeypatch.setenv(VARIABLE, str(cache))
    with pytest.raises(EdgeLstmError, match=f"{said}. Build it on this machine"):
        OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None)


def test_a_library_that_does_not_load_is_named_and_the_model_runs_without(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    info = json.dumps({"schema": module.SCHEMA, "machine": machine_name(), "sources": ""})
    cache.write_bytes(b"\x7fELF\0edgelstm-native " + info.encode() + b"\0")
    with caplog.at_level(logging.WARNING):
        assert OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None).native is None
    assert "our operators are not used" in caplog.text
    with pytest.raises(EdgeLstmError, match="EDGELSTM_NATIVE=0"):
        OrtProgram(zoo.lstm().to_bytes(), threads=1, native=True)


def test_other_results_than_the_graph_s_own_are_seen_when_it_is_opened(
    cache: Path, library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stands in for a mistake in the rewriting: peepholes taken for others. A mask that is False hides what the cell gives."""
    masked = from_text(
        "g (float[N,3] x, bool[N,1] m, float[N,4] h, float[N,4] c) => (float[N,4] h_next, float[N,4] c_next) "
        f"<float[16,7] w = {{{', '.join(['0.5', '-0.75'] * 56)}}}> {{ xh = Concat<axis=1>(x, h) z = Gemm<transB=1>(xh, w) "
        "a, b = edgelstm.FusedGates_lstm(z, c) h_next = Where(m, a, h) c_next = Where(m, b, c) }",
        h="h_next", c="c_next",
    )  # fmt: skip
    wrong = lambda op: {"candidate_relu": 1}  # noqa: E731
    monkeypatch.setattr("edgelstm.runtime.native.cells.variant_attributes", wrong)
    monkeypatch.setenv(VARIABLE, str(library))
    for step in (zoo.lstm(), masked):
        with caplog.at_level(logging.WARNING):
            assert OrtProgram(step.to_bytes(), threads=1, native=None).native is None
        assert "off by" in caplog.text
        caplog.clear()
        preparing._said.clear()


def test_where_onnx_runtime_lets_no_session_be_beside_its_own_it_is_one_of_its_own(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 1.22 and earlier."""

    def refused(*_: object) -> None:
        raise EdgeLstmError("only one instance of the log can exist")

    monkeypatch.setattr("edgelstm.runtime.session.NativeSession.__init__", refused)
    for step in (zoo.lstm(), gru(f"{AFTER}\n{MOVE}", True), zoo.conv_lstm()):
        program = compare_streamed(step, library)
        assert program.native is not None


def test_kernels_that_are_not_there_are_an_error(
    cache: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(library))
    monkeypatch.setenv("EDGELSTM_NATIVE_ISA", "avx3")
    with pytest.raises(EdgeLstmError, match="EDGELSTM_NATIVE_ISA=avx3"):
        OrtProgram(zoo.lstm().to_bytes(), threads=1, native=None)


def test_a_model_without_cells_says_so_where_our_operators_are_demanded(library: Path) -> None:
    step = gru("d = Sub (h, h)\n y = Add (d, h)", False)
    with pytest.raises(EdgeLstmError, match="nothing that our operators compute"):
        native_library.opened(step.to_bytes(), library, native=True)
    assert native_library.opened(step.to_bytes(), library).native is None


def test_the_file_name_is_the_one_that_is_built(library: Path) -> None:
    found = module.read_native_library(library)
    assert library.name == FILE_NAME
    found.check()
    assert found.instructions() in ("avx512vnni", "avx512", "avx2vnni", "avx2", "portable", "neondot", "neon")


def test_weights_in_another_file_are_left_to_onnx_runtime(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened from bytes, a session would look for them where it is run: there are another model's, a little different."""
    models = []
    for name, factor in (("mine", 1.0), ("other", 1.0001)):
        model = onnx.load_from_string(zoo.conv_lstm().to_bytes())
        for tensor in model.graph.initializer:
            value = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        models.append(tmp_path / name / "model.onnx")
        models[-1].parent.mkdir()
        onnx.save(model, models[-1], save_as_external_data=True, location="weights", size_threshold=0)
    monkeypatch.chdir(tmp_path / "other")
    program = native_library.opened(models[0], library, threads=1)
    frame = np.ones(program.signature.inputs[0].frame_shape, np.float32)
    with Runner(program) as runner, Runner.open(models[0], native=False) as plain:
        for name, value in plain.stream("s").step(frame).items():
            assert runner.stream("s").step(frame)[name].tobytes() == value.tobytes()
    with pytest.raises(EdgeLstmError, match="weights in the model's file"):
        native_library.opened(models[0], library, native=True)
