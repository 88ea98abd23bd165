"""Comparing two programs: the figures, the pairing by name, and what can't be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.onnx.file import declare
from edgelstm.graph.signature import Quantization, Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.passes.unroll import unroll
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.verify.compare import TensorError, compare


def frames(count: int, width: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=width).astype(np.float32)} for _ in range(count)]


def program(step: StepModel) -> OrtProgram:
    return OrtProgram(step.to_bytes(), threads=1)


def disturbed(step: StepModel, name: str, factor: float) -> StepModel:
    model = step.copy_model()
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return StepModel(model, step.signature)


def test_equal_programs_have_no_error() -> None:
    result = compare(program(zoo.lstm()), program(zoo.lstm()), frames(5))
    assert result.frames == 5
    assert {t.name for t in result.tensors} == {"y", "z9_h", "a0_c", "z8_h", "a1_c"}
    assert all(list(t.errors) == list(t.norms) == [0.0] * 5 for t in result.tensors)


def test_a_disturbed_head_shows_in_the_output_alone() -> None:
    result = compare(program(zoo.lstm()), program(disturbed(zoo.lstm(), "head.w", 1.01)), frames(20))
    by_name = {t.name: t for t in result.tensors}
    np.testing.assert_allclose(by_name["y"].errors, 0.01, rtol=1e-3)
    assert result.worst.name == "y"
    assert by_name["z8_h"].worst == 0


def test_an_error_fed_back_grows_from_the_first_frame_on() -> None:
    result = compare(program(zoo.lstm()), program(disturbed(zoo.lstm(), "w0", 1.001)), frames(50))
    h = next(t for t in result.tensors if t.name == "z9_h")
    assert 0 < h.errors[0] < h.worst
    assert h.worst_frame == h.frames[int(np.argmax(h.errors))]
    assert h.last == h.errors[-1]


def test_not_a_number_is_the_largest_error() -> None:
    tensor = TensorError("y", "output")
    tensor.add(0, np.ones(2, np.float32), np.array([1, np.nan], np.float32))
    assert tensor.worst == math.inf


def test_a_value_that_all_but_vanishes_is_measured_against_what_was() -> None:
    tensor = TensorError("y", "output")
    tensor.add(0, np.array([10.0]), np.array([10.0]))
    tensor.add(1, np.array([1e-9]), np.array([2e-9]))
    assert tensor.last < 1e-6


def test_programs_without_common_names_or_inputs_are_refused() -> None:
    with pytest.raises(EdgeLstmError, match="a and b take different frames"):
        compare(program(zoo.lstm()), program(zoo.lstm(inputs=4)), frames(2))
    with pytest.raises(EdgeLstmError, match="nothing to compare: found 0 frames; expected at least 1 frame"):
        compare(program(zoo.lstm()), program(zoo.lstm()), [])


def test_an_output_is_no_match_for_a_state_of_the_same_name() -> None:
    stateless = renamed_output("s")
    only_state = zoo.running_sum(outputs=())
    with pytest.raises(
        EdgeLstmError, match="a and b share no output and no state: found output s and state s"
    ):
        compare(program(stateless), program(only_state), [{"x": np.array(1, np.float32)}])


def renamed_output(name: str) -> StepModel:
    signature = Signature((TensorSpec("x", "float32", ("N",)),), (TensorSpec(name, "float32", ("N",)),), ())
    return make_step([helper.make_node("Abs", ["x"], [name])], signature, [])


def stored_sum(dtype: str) -> StepModel:
    """The sum of all frames so far, leaking; the state is stored as ``dtype``, and is the output too."""
    quantized = dtype == "int8"
    scale = numpy_helper.from_array(np.array(1 / 16, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    leak = numpy_helper.from_array(np.array([0.75], np.float32), "leak")
    if quantized:
        load = helper.make_node("DequantizeLinear", ["s", "scale", "zero"], ["s32"])
        store = helper.make_node("QuantizeLinear", ["n", "scale", "zero"], ["s_next"])
    else:
        code = {"float32": 1, "float16": 10, "bfloat16": 16, "float8e4m3fn": 17}[dtype]
        load = helper.make_node("Cast", ["s"], ["s32"], to=1)
        store = helper.make_node("Cast", ["n"], ["s_next"], to=code)
    nodes = [
        load,
        helper.make_node("Mul", ["s32", "leak"], ["kept"]),
        helper.make_node("Add", ["kept", "x"], ["n"]),
        store,
    ]
    worth = Quantization((1 / 16,)) if quantized else None
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", 3)),),
        outputs=(TensorSpec("s_next", dtype, ("N", 3)),),
        states=(StateSpec("s", "s", "s_next", dtype, ("N", 3), quantization=worth),),
    )
    return make_step(nodes, signature, [leak, *([scale, zero] if quantized else [])], opset=21)


@pytest.mark.parametrize(
    ("dtype", "part"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float8e4m3fn", 2**-4), ("int8", 1 / 32)]
)
def test_states_and_outputs_are_compared_by_what_they_are_worth(dtype: str, part: float) -> None:
    result = compare(program(stored_sum("float32")), program(stored_sum(dtype)), frames(100))
    output, state = result.tensors
    assert (output.kind, state.kind) == ("output", "state")
    assert output.errors == state.errors  # one tensor
    assert part / 20 < state.drift.level < 4 * part
    assert state.drift.kind == "settles"


def test_the_error_in_the_2_norm() -> None:
    tensor = TensorError("y", "output")
    tensor.add(0, np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    tensor.add(1, np.array([0.0, 1e-9]), np.array([0.0, 2e-9]))
    assert tensor.norms[0] == pytest.approx(0.1)
    assert tensor.errors[0] == pytest.approx(0.125)
    assert tensor.norms[1] < 1e-6


def test_an_error_that_grows_with_the_stream_and_a_state_that_does() -> None:
    """Twice the sum of all frames: with a factor that is wrong by 1%, an absolute error grows; the relative one settles."""
    ones = [{"x": np.array(1, np.float32)}] * 600
    step = zoo.running_sum()
    result = compare(program(step), program(disturbed(step, "two", 1.01)), ones)
    output, state = result.tensors
    assert output.drift.text == "settles at 0.01"
    assert state.drift.level == 0
    (found,) = result.states
    assert found.growth.grows
    assert found.growth.drift.slope_per_1000 == pytest.approx(1000, rel=1e-6)
    assert found.growth.frame_reaching(65504) == pytest.approx(65504 - 3 - 1, abs=1)  # it starts at 3
    assert found.resolves("float16")  # from 512 on, a step of 0.5
    assert not found.resolves("bfloat16")  # a step of 4
    text = found.text()
    assert text.startswith(
        "state s: grows linearly by 1,000 in 1,000 frames, 603 at frame 599; float16 (65,504 at most) "
    )
    assert "; bfloat16 no longer resolves its changes; no scale of an 8-bit type holds it for long" in text


def test_a_state_that_counts_has_no_range() -> None:
    step = zoo.two_inputs()
    pair = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    result = compare(program(step), program(step), [pair] * 60)
    assert [s.name for s in result.states] == ["total"]
    assert not result.states[0].growth.grows


def test_a_loop_that_amplifies_diverges() -> None:
    """h = 1.1 h + x beside h = 1.1 h + 1.000001 x: the state itself doubles in 7.3 frames, the relative error settles."""

    def amplifier(factor: float) -> StepModel:
        step = zoo.two_inputs()
        model = step.copy_model()
        for tensor in model.graph.initializer:
            if tensor.name == "leak":
                tensor.CopyFrom(numpy_helper.from_array(np.array([factor], np.float32), "leak"))
        return StepModel(model, step.signature)

    pair = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    result = compare(program(amplifier(1.0)), program(amplifier(1.1)), [pair] * 200)
    total = next(t for t in result.tensors if t.kind == "state" and t.name == "total")
    assert total.drift.kind == "diverges"
    assert total.drift.doubling_frames == pytest.approx(math.log(2) / math.log(1.1), rel=0.2)


def test_a_window_is_compared_where_its_states_are_known() -> None:
    window = unroll(zoo.lstm(), 4)
    result = compare(program(zoo.lstm()), program(window), frames(240))
    y, h = result.tensors[0], result.tensors[1]
    assert list(y.frames) == list(range(240))
    assert list(h.frames) == list(range(3, 240, 4))
    assert {t.drift.kind for t in result.tensors} == {"settles"}
    assert list(result.states[0].frames) == list(h.frames)


def test_the_range_of_a_published_model_s_cell_state_grows(shared_dir: Path) -> None:
    """DTLN packs h and c in one state; its c grows for as long as sound comes."""
    path = shared_dir / "models" / "dtln" / "model_1.onnx"
    if not path.exists():
        pytest.skip("the DTLN model is not here")
    step = declare(path.read_bytes(), path.name, {"input_3": "tf_op_layer_stack_2"})
    rng = np.random.default_rng(0)
    noise = [{"input_2": np.abs(rng.standard_normal((1, 257))).astype(np.float32)} for _ in range(600)]
    silence = [{"input_2": np.zeros((1, 257), np.float32)}] * 600
    model = program(step)
    (grown,), (calm,) = (compare(model, model, sounds).states for sounds in (noise, silence))
    assert grown.growth.drift.slope_per_1000 == pytest.approx(1000, rel=0.05)
    assert grown.growth.frame_reaching(65504) == pytest.approx(65504, rel=0.05)
    assert not grown.resolves("bfloat16")
    assert not calm.growth.grows
    assert calm.growth.frame_reaching(65504) is None


def test_numbers_alone_are_kept(tmp_path: Path) -> None:
    result = compare(program(zoo.lstm()), program(zoo.lstm()), frames(50))
    for tensor in result.tensors:
        assert all(a.itemsize == 8 for a in (tensor.frames, tensor.errors, tensor.norms))


def test_json_and_plot(tmp_path: Path) -> None:
    result = compare(
        program(zoo.lstm()), program(disturbed(zoo.lstm(), "head.w", 2)), frames(60), names=("p", "q")
    )
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["worst"]["tensor"] == "y"
    assert data["frames"] == 60
    tensor = data["tensors"][0]
    assert len(tensor["errors"]) == len(tensor["norms"]) == len(tensor["frames"]) == 60
    assert tensor["drift"]["kind"] == "settles"
    assert tensor["drift"]["level"] == pytest.approx(1)
    state = data["states"][0]
    assert not state["grows"]
    assert len(state["largest_per_frame"]) == 60
    assert state["overflow_frame"]["float16"] is None
    pytest.importorskip("matplotlib")
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        result.plot(tmp_path / f"drift{suffix}")
        assert (tmp_path / f"drift{suffix}").read_bytes().startswith(start)
    text = (tmp_path / "drift.svg").read_text()
    assert "output y: settles at 1" in text
    assert "float16 ends at 65,504" in text
    with pytest.raises(
        EdgeLstmError, match=r"can't draw .*: found suffix .nonsense; expected .png, .svg, .pdf"
    ):
        result.plot(tmp_path / "drift.nonsense")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_broken_model_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    broken = disturbed(zoo.lstm(), "head.w", math.nan)
    result = compare(program(zoo.lstm()), program(broken), frames(60))
    assert result.tensors[0].drift.text == "not finite from frame 0 on"
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["tensors"][0]["norms"] == [None] * 60
    result.plot(tmp_path / "broken.png")
    assert (tmp_path / "broken.png").exists()
