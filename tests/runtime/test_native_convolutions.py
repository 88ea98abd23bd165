"""Step graphs with ConvLSTM cells: which become an operator of ours with their convolution, and that the numbers stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from test_native import compare_streamed, counts

import edgelstm
import native_library
import zoo
from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.runtime import Runner
from edgelstm.runtime.native.cells import rewrite
from tolerances import assert_close

WHOLE, GATES = {"FusedConvLSTMCell": 1}, {"FusedGates": 1}
SIZE, CHANNELS, UNITS = (8, 12), 9, 10


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


def cell(
    nodes: list[Any],
    *,
    kernel: int = 3,
    channels: int = CHANNELS + UNITS,
    split: bool = False,
    bias: tuple[int, ...] = (4 * UNITS,),
) -> StepModel:
    """A ConvLSTM whose pre-activations those nodes make of x and h. split: weights for x and for h; else for both joined."""
    rng = np.random.default_rng(0)
    weights = {"b": rng.normal(0, 0.3, bias)}
    sizes = {"w_x": CHANNELS, "w_h": UNITS} if split else {"w": channels}
    weights |= {name: rng.normal(0, 0.1, (4 * UNITS, count, kernel, kernel)) for name, count in sizes.items()}
    variant = GateVariant()
    gates = helper.make_node(variant.op_type, ["z", "c"], ["h_next", "c_next"], domain=DOMAIN)
    shape = ("N", UNITS, *SIZE)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", CHANNELS, *SIZE)),),
        outputs=(TensorSpec("h_next", "float32", shape),),
        states=tuple(StateSpec(name, name, f"{name}_next", "float32", shape) for name in ("h", "c")),
    )
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    return make_step([*nodes, gates], signature, tensors, [variant.function(18)])


def joined(order: tuple[str, ...] = ("x", "h"), axis: int = 1, **attributes: Any) -> list[Any]:
    """Concat, Conv."""
    given: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4} | attributes
    return [
        helper.make_node("Concat", order, ["xh"], axis=axis),
        helper.make_node(
            "Conv", ["xh", "w", "b"], ["z"], **{k: v for k, v in given.items() if v is not None}
        ),
    ]


def apart(last: str) -> list[Any]:
    """A Conv of x and one of h, and their sum. last: where the bias comes in."""
    made = [
        helper.make_node("Conv", ["x", "w_x", *(["b"] if last == "conv" else [])], ["z_x"], pads=[1] * 4),
        helper.make_node("Conv", ["h", "w_h"], ["z_h"], auto_pad="SAME_UPPER"),
    ]
    if last == "conv":
        return [*made, helper.make_node("Add", ["z_x", "z_h"], ["z"])]
    return [
        *made,
        helper.make_node("Add", ["z_h", "z_x"], ["sum"]),
        helper.make_node("Add", ["sum", "b"], ["z"]),
    ]


def test_a_convolution_over_x_and_h_and_its_gates_become_one_operator(library: Path) -> None:
    for step in (
        cell(joined()),
        cell(
            joined(("h", "x"), axis=-3, pads=None, auto_pad="SAME_LOWER", kernel_shape=None, strides=[1, 1])
        ),
        cell(apart("conv"), split=True),
        cell(apart("add"), split=True, bias=(4 * UNITS, 1, 1)),
        cell(joined(("x", "h", "h")), channels=CHANNELS + 2 * UNITS),
        zoo.conv_lstm(9, 11, 7),  # peepholes
        zoo.conv_lstm(9, 11, 7, peephole=False),
    ):
        assert counts(step) == WHOLE
        compare_streamed(step, library)


@pytest.mark.parametrize(
    "step",
    [
        cell(joined(dilations=[2, 2], pads=[2] * 4)),
        cell(joined(kernel_shape=[5, 5], pads=[2] * 4), kernel=5),
        cell(joined(kernel_shape=[1, 1], pads=[0] * 4), kernel=1),
        cell(joined(pads=[0, 0, 2, 2])),
        zoo.conv_lstm(2, 3, 12),
        zoo.conv_lstm(64, 64, 8),
        zoo.conv_lstm(16, 16, 5),
    ],
    ids=["dilation", "kernel of 5", "kernel of 1", "other padding", "few channels", "few tiles for so many weights", "tiles that are mostly empty"],
)  # fmt: skip
def test_other_convolutions_stay_with_onnx_runtime(step: StepModel) -> None:
    assert counts(step) == GATES


def test_maps_of_no_fixed_size_stay_with_onnx_runtime() -> None:
    step = cell(joined())
    model = step.model
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    assert dict(rewrite(model.SerializeToString(), 1).counts) == GATES  # type: ignore[union-attr]


def test_without_lending_the_file_has_the_weights_and_is_whole_by_itself(library: Path) -> None:
    step = cell(joined())
    found = rewrite(step.to_bytes(), 1, lend=False)
    assert found is not None
    assert found.matrices == {}
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.normal(size=(2, channels, *SIZE)).astype(np.float32)
        for name, channels in (("x", CHANNELS), ("h", UNITS), ("c", UNITS))
    }
    ours = native_library.session(found.data, library).run(None, feeds)
    theirs = native_library.session(step.to_bytes(), library).run(None, feeds)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gates_that_go_on_from_others_count_as_states_of_their_size(library: Path, tmp_path: Path) -> None:
    """A forecaster's cells begin with the encoder's new states, and its first one has no input."""
    torch = pytest.importorskip("torch")
    nn = pytest.importorskip("edgelstm.frontends.torch.nn")
    torch.manual_seed(0)
    network = nn.EncoderForecaster(1, [16, 16], size=(16, 24), patch=2, stem=8, horizon=2, kernel=3)
    nn.save(network, tmp_path / "m.safetensors")
    step = edgelstm.export(tmp_path / "m.safetensors", limit=3).step
    assert counts(step) == {"FusedConvLSTMCell": 6}
    compare_streamed(step, library)


def test_a_model_of_two_layers_stays_at_torch_s_float64_on_rain_radar(
    library: Path, tmp_path: Path, radar_dir: Path
) -> None:
    torch = pytest.importorskip("torch")
    h5py = pytest.importorskip("h5py")
    nn = pytest.importorskip("edgelstm.frontends.torch.nn")
    torch.manual_seed(0)
    network = nn.ConvLSTM(1, [16, 12], size=(20, 16), kernel=3)
    nn.save(network, tmp_path / "m.safetensors")
    step = edgelstm.export(tmp_path / "m.safetensors", limit=3).step
    assert counts(step) == {"FusedConvLSTMCell": 2}
    exact, states = network.double(), None
    with Runner(native_library.opened(step.to_bytes(), library, threads=2)) as runner:
        stream = runner.stream("a")
        for path in sorted(radar_dir.glob("**/*.h5"))[:12]:
            with h5py.File(path) as file:
                codes = file["image1/image_data"][300:320, 250:266]
            rain = np.where(codes == 65535, 0, codes * 0.01)[None].astype(np.float32)
            with torch.no_grad():
                before = exact.initial_states() if states is None else states
                y, states = exact(torch.from_numpy(rain[None]).double(), *(s.double() for s in before))
            found = stream.step(rain)
            assert_close(found["y"] if isinstance(found, dict) else found, y[0].numpy(), np.float32, k=32)
