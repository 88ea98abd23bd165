"""What an export is judged by: every door's float64, frames as the model takes them, windows by the frames they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

import planted

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends import Request, load
from edgelstm.frontends.door import Source
from edgelstm.frontends.onnx.double import Evaluator, in_double
from edgelstm.graph.step import StepModel
from edgelstm.workflows.prove import proved

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/moving_digits/model.safetensors"


def check_twins(source: Source, count: int = 8) -> None:
    """float64 is much finer than the source, and the source in float32 rounds: neither is the other in disguise."""
    exact, rounded, again = source.exact(), source.rounded(), source.exact()
    states = [p.new_state() for p in (exact, rounded, again)]
    rng = np.random.default_rng(0)
    for _ in range(count):
        frame = {t.name: rng.standard_normal(t.frame_shape).astype(t.dtype) for t in source.signature.inputs}
        a, b, c = (p.step([frame], s, [0])[0] for p, s in zip((exact, rounded, again), states, strict=True))
    for name, value in a.items():
        assert value.dtype == np.float64
        assert b[name].dtype == np.float32
        difference = np.abs(value - b[name]).max()
        assert 0 < difference < 1e-4 * max(1.0, np.abs(value).max())
        # Not float32 in a wider type: half of the mantissa would be zeros.
        assert (value != value.astype(np.float32)).mean() > 0.5
        np.testing.assert_array_equal(value, c[name])


def test_a_described_model_in_float64() -> None:
    check_twins(load(str(EXAMPLE), Request()).reference, 2)


def test_an_onnx_file_in_float64(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    planted.model().save(path)
    check_twins(load(str(path), Request()).reference)


def test_a_torch_module_that_names_float32_in_float64() -> None:
    """Casts, factories and constants of float32 in its code are float64 as well; integers stay."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Linear(7, 4)
            self.scale = torch.tensor([0.1, 0.2, 0.3, 0.4])  # no buffer

        def forward(self, x, h):
            steps = torch.arange(4).to(torch.float32) / 7
            zeros = torch.zeros(x.shape[0], 4, dtype=torch.float32)
            h = torch.tanh(self.w(torch.cat([x.float(), h], 1)) * self.scale + steps + zeros)
            return h * 3, h

    torch.manual_seed(0)
    check_twins(load(Net(), Request(frame=(3,), states={"h": (4,)})).reference)


def test_a_keras_model_in_float64(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((None, 3)), layers.LSTM(5, return_sequences=True), layers.Dense(2, activation="tanh")]
    )
    model.save(tmp_path / "m.keras")
    check_twins(load(str(tmp_path / "m.keras"), Request()).reference)


def test_widening_changes_types_and_no_numbers() -> None:
    step = planted.model()
    wide = in_double(step.model)
    assert {t.data_type for t in wide.graph.initializer} == {TensorProto.DOUBLE, TensorProto.INT64}
    for a, b in zip(step.model.graph.initializer, wide.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))


@pytest.mark.parametrize(
    "options",
    [
        {"pads": [1, 0, 2, 1]},
        {"strides": [2, 1], "dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"group": 2},
    ],
)
def test_our_convolution_is_onnx_s(options: dict[str, object]) -> None:
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    group = int(options.get("group", 1))  # type: ignore[call-overload]
    x, w = rng.normal(size=(2, 4, 7, 8)), rng.normal(size=(6, 4 // group, 3, 2))
    values = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, v.shape) for n, v in (("x", x), ("w", w))]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **options)],
        "g",
        values,
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None] * 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (found,) = Evaluator(model).run(["y"], {"x": x, "w": w})
    (wanted,) = ReferenceEvaluator(model).run(["y"], {"x": x, "w": w})
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_without_a_float64_the_graph_is_held_to_its_source_and_that_is_said() -> None:
    step = planted.model()
    loaded = load_with(step, failing=True)
    found = proved(loaded, step, None, 10, threads=1)
    assert found.proof is None
    assert any(
        "no float64 of the source could be had (NotImplementedError: an operator is missing)" in n
        for n in found.notes
    )
    with pytest.raises(EdgeLstmError, match="does not match its source"):
        proved(load_with(step, failing=True), planted.wrong_bias(step, 1e-3), None, 10, threads=1)


def load_with(step: StepModel, failing: bool) -> object:
    from edgelstm.frontends import Loaded
    from edgelstm.frontends.onnx.program import DeclaredProgram

    class Failing(DeclaredProgram):
        def exact(self):  # type: ignore[no-untyped-def]
            raise NotImplementedError("an operator is missing")

    return Loaded(step, Failing(step) if failing else DeclaredProgram(step), "planted")


def test_what_is_right_in_float64_passes_where_the_runtime_rounds_more() -> None:
    """Behind a sigmoid near 0 a logarithm shows what ONNX Runtime's sigmoid loses there; NumPy's loses less."""
    from edgelstm.frontends import Loaded
    from edgelstm.frontends.onnx.double import StepEvaluator
    from edgelstm.frontends.onnx.program import DeclaredProgram
    from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
    from edgelstm.graph.step import make_step

    nodes = [
        helper.make_node("Add", ["x", "low"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["p"]),
        helper.make_node("Log", ["p"], ["y"]),
        helper.make_node("Add", ["s", "p"], ["s_next"]),
    ]
    spec = ("N", 8)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", spec),),
        outputs=(TensorSpec("y", "float32", spec),),
        states=(StateSpec("s", "s", "s_next", "float32", spec),),
    )
    step = make_step(nodes, signature, [numpy_helper.from_array(np.float32(-4), "low")], [])

    class Fine(DeclaredProgram):
        def rounded(self) -> StepEvaluator:  # type: ignore[override]
            return StepEvaluator(step)

    found = proved(Loaded(step, Fine(step), "log"), step, None, 50, threads=1)
    assert any("ONNX Runtime rounds" in note and "in float64 the graph is" in note for note in found.notes)


def test_a_tolerance_of_the_user_is_a_bound_on_the_error_from_float64() -> None:
    step = planted.model()
    wrong = planted.wrong_bias(step, 1e-3)
    with pytest.raises(EdgeLstmError) as caught:
        planted.judged(step, wrong)
    figure = max(float(part.split()[0]) for part in str(caught.value).split("graph ")[1:2])
    loaded = load_with(step, failing=False)
    assert proved(loaded, wrong, None, 20, tolerance=0.1, threads=1).comparison.worst.worst >= figure / 10  # type: ignore[arg-type]
    with pytest.raises(EdgeLstmError, match="expected at most 1e-06 over 20 frames, as --tolerance says"):
        proved(load_with(step, failing=False), wrong, None, 20, tolerance=1e-6, threads=1)  # type: ignore[arg-type]


def test_results_print_in_a_line(tmp_path: Path) -> None:
    step = planted.model()
    path = tmp_path / "m.onnx"
    step.save(path)
    exported = edgelstm.export(path, tmp_path / "out.onnx", limit=20, threads=1)
    for thing in (
        exported,
        exported.proof,
        exported.comparison,
        exported.comparison.worst,
        exported.comparison.tensors,
        exported.step,
        exported.step.signature,
        edgelstm.inspect(path),
        edgelstm.verify(str(path), str(tmp_path / "out.onnx"), limit=10),
    ):
        assert len(repr(thing)) < 500, repr(thing)
    assert "from float64, graph" in repr(exported)


def test_half_precision_is_judged_by_its_own_rounding() -> None:
    """The same model with weights and states in float16: right it passes, with a bias off by 3% it does not."""
    onnx = pytest.importorskip("onnx")
    from edgelstm.frontends import Loaded
    from edgelstm.frontends.onnx.program import DeclaredProgram

    def halved(step: StepModel) -> StepModel:
        new = step.copy_model()
        for tensor in new.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(values, f"{tensor.name}_half"))
                new.graph.node.insert(
                    0,
                    helper.make_node(
                        "Cast", [tensor.name], [tensor.name.removesuffix("_half")], to=TensorProto.FLOAT
                    ),
                )
        onnx.checker.check_model(new)
        return StepModel(new, step.signature)

    step = halved(planted.model())
    found = proved(Loaded(step, DeclaredProgram(step), "half"), step, None, 20, threads=1)
    assert found.proof is not None
    assert found.proof.holds
    wrong = halved(planted.wrong_bias(planted.model(), 0.1))
    with pytest.raises(EdgeLstmError, match="does not match its source"):
        proved(Loaded(step, DeclaredProgram(step), "half"), wrong, None, 20, threads=1)


def test_windows_are_counted_by_the_frames_they_hold(tmp_path: Path) -> None:
    """200 frames are ten windows of 20, not 200 of them."""
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential([keras.Input((20, 3)), layers.Bidirectional(layers.LSTM(4)), layers.Dense(1)])
    model.save(tmp_path / "m.keras")
    seen: list[int] = []
    made = edgelstm.export(tmp_path / "m.keras", threads=1, progress=seen.append)
    assert made.step.signature.window is None
    assert made.comparison.frames == 10 == sum(seen)


def test_what_is_being_done_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    planted.model().save(path)
    told: list[str] = []
    edgelstm.export(path, limit=5, threads=1, doing=told.append)
    assert told == ["reading", "keeping streams apart", "proving"]
