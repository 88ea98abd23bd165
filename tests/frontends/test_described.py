from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from architectures import architectures, random_described, random_weights, write
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.described.architecture import (
    ConvHead,
    ConvLstm,
    EncoderForecaster,
    LinearHead,
    Lstm,
    to_json,
)
from edgelstm.frontends.described.graph import load_described, to_step
from edgelstm.frontends.described.reference import NumpyProgram
from edgelstm.graph.step import StepModel

GOLDEN = Path(__file__).parents[1] / "golden" / "described"
LSTM = Lstm(3, (4, 5), head=LinearHead(6), residual=True)
CONV = ConvLstm(2, (3,), 3, (5, 6), peephole=True, head=ConvHead(2, 1))
NETWORK = EncoderForecaster(
    channels=1, size=(8, 6), patch=2, stem=3, hidden=(4, 5), kernel=3, horizon=3, residual=True
)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the largest value, which counts as at least a hundredth: a sum of terms of the size of 1 may come out as next to nothing,
    and is rounded as they are."""
    scale = max(float(np.abs(expected).max(initial=0)), 1e-2)
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / scale


class Session:
    """A step graph in ONNX Runtime, its state fed back by hand."""

    def __init__(self, step: StepModel, streams: int) -> None:
        ort = pytest.importorskip("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.signature = step.signature
        self.session = ort.InferenceSession(step.to_bytes(), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]
        self.state = {s.input: np.zeros((streams, *s.frame_shape), np.float32) for s in step.signature.states}

    def step(self, x: np.ndarray) -> np.ndarray:
        values = dict(zip(self.names, self.session.run(None, {"x": x, **self.state}), strict=True))
        self.state = {s.input: values[s.output] for s in self.signature.states}
        return values[self.signature.outputs[0].name]


@settings(max_examples=40, deadline=None)
@given(architectures, st.integers(1, 3), st.integers(0, 2**16))
def test_graph_computes_what_the_reference_computes(architecture, streams, seed) -> None:
    described = random_described(architecture, seed)
    step = to_step(described)
    step.check()
    session, program = Session(step, streams), NumpyProgram(described, streams)
    state, rows = program.new_state(), range(streams)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        x = rng.standard_normal((streams, *architecture.frame_shape), np.float32)
        y = session.step(x)
        expected = program.step([{"x": frame} for frame in x], state, rows)
        assert relative_error(y, np.stack([o[architecture.output_name] for o in expected])) < 1e-5
    for name, value in state.items():
        assert relative_error(session.state[name], value) < 1e-5, name


@settings(max_examples=25, deadline=None)
@given(architecture=architectures, seed=st.integers(0, 2**16))
def test_graph_computes_what_torch_computes(architecture, seed, tmp_path_factory) -> None:
    torch = pytest.importorskip("torch")
    from edgelstm.frontends.torch import nn

    path = write(
        tmp_path_factory.mktemp("w") / "w.safetensors", architecture, random_weights(architecture, seed)
    )
    module, session = nn.load(path).double(), Session(to_step(load_described(path)), 2)
    states = module.initial_states(2)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for _ in range(30):
            x = rng.standard_normal((2, *architecture.frame_shape), np.float32)
            expected, states = module(torch.from_numpy(x).double(), *states)
            assert relative_error(session.step(x), expected.numpy()) < 1e-5
    for value, expected in zip(session.state.values(), states, strict=True):
        assert relative_error(value, expected.numpy()) < 1e-5


def test_lstm_operators() -> None:
    assert to_step(random_described(LSTM)).op_types() == [
        *["Concat", "Gemm", "FusedGates_lstm"] * 2,
        *["Gemm", "Concat", "Add"],
    ]


def test_conv_lstm_operators() -> None:
    assert to_step(random_described(CONV)).op_types() == ["Concat", "Conv", "FusedGates_peephole", "Conv"]


def test_encoder_forecaster_operators() -> None:
    encoder = ["Conv", *["Concat", "Conv", "FusedGates_lstm"] * 2]
    # The forecaster's first layer has no input, so nothing to join.
    forecaster = ["Conv", "FusedGates_lstm", "Concat", "Conv", "FusedGates_lstm"]
    head = ["Concat"] * 3 + ["Conv", "DepthToSpace", "Reshape", "Unsqueeze", "Add"]
    assert to_step(random_described(NETWORK)).op_types() == encoder + forecaster * 3 + head


@settings(max_examples=20, deadline=None)
@given(architectures)
def test_every_weight_is_stored_once_and_the_stream_axis_is_free(architecture) -> None:
    described = random_described(architecture)
    step = to_step(described)
    stored = [t.name for t in step.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sorted(stored) == sorted(described.weights)
    assert step.signature.stream_axis == "N"
    assert [f.name for f in step.model.functions] == [
        "FusedGates_peephole" if architecture.peephole else "FusedGates_lstm"
    ]


def test_states_are_named_by_layer() -> None:
    states = to_step(random_described(NETWORK)).signature.states
    assert [(s.name, s.input, s.output) for s in states] == [
        (n, n, f"{n}_next") for n in ("h0", "c0", "h1", "c1")
    ]


def test_without_a_head_the_output_is_the_last_hidden_state() -> None:
    signature = to_step(random_described(Lstm(3, (4, 5)))).signature
    assert [s.output for s in signature.states] == ["h0_next", "c0_next", "y", "c1_next"]
    assert signature.output("y").shape == ("N", 5)


def test_file_round_trip(tmp_path: Path) -> None:
    weights = random_weights(CONV)
    ops = {"x": [{"op": "scale", "factor": 0.5}]}
    described = load_described(write(tmp_path / "w.safetensors", CONV, weights, ops))
    assert described.architecture == CONV
    assert {name: value.tobytes() for name, value in described.weights.items()} == {
        name: value.tobytes() for name, value in weights.items()
    }
    step = to_step(described)
    assert step.signature.to_json()["preprocessing"] == ops
    step.save(tmp_path / "m.onnx")
    assert StepModel.load(tmp_path / "m.onnx").signature == step.signature
    assert step.to_bytes() == to_step(described).to_bytes()


@pytest.mark.parametrize("name", ["lstm", "conv_lstm", "encoder_forecaster"])
def test_files_of_schema_1_load_for_ever(name: str) -> None:
    """Weights and frames with the outputs that torch gave for them when the format was new."""
    described = load_described(GOLDEN / f"{name}.safetensors")
    recorded = np.load(GOLDEN / f"{name}.npz")
    session = Session(to_step(described), 1)
    assert described.architecture.name == name
    for x, y in zip(recorded["frames"], recorded["outputs"], strict=True):
        assert relative_error(session.step(x[None])[0], y) < 1e-5


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match=r"nothing\.safetensors does not exist\. Check the path"):
        load_described(tmp_path / "nothing.safetensors")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match=r"found a folder; expected a \.safetensors file"):
        load_described(tmp_path)


def test_plain_weights_say_which_door_to_take(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", None, random_weights(LSTM))
    with pytest.raises(
        EdgeLstmError,
        match=r"is plain weights: its header states no architecture.*edgelstm export package\.module:factory --weights .*w\.safetensors",
    ):
        load_described(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "w.safetensors", LSTM, random_weights(LSTM))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EdgeLstmError, match=r"w\.safetensors is not a \.safetensors file, or is truncated"):
        load_described(path)


@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 600), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(where, value, tmp_path_factory) -> None:
    path = write(tmp_path_factory.mktemp("w") / "w.safetensors", LSTM, random_weights(LSTM))
    data = bytearray(path.read_bytes())
    data[where] = value
    path.write_bytes(data)
    problem = None
    try:
        to_step(load_described(path))
    except EdgeLstmError as error:
        problem = str(error)
    assert problem is None or "w.safetensors" in problem


def changed(**values: Any) -> dict[str, Any]:
    """LSTM's JSON with some keys changed, or left out where the value is ``...``."""
    return {key: value for key, value in {**to_json(LSTM), **values}.items() if value is not ...}


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("{", "architecture is not JSON"),
        ("[" * 100_000, "architecture is not JSON"),
        ("[1]", "not an architecture: found list; expected a JSON object"),
        (changed(schema=2), "architecture schema: found 2; expected 1. A newer edgelstm may have written it"),
        (changed(architecture="gru"), "found gru; expected one of lstm, conv_lstm, encoder_forecaster"),
        (changed(architecture=["lstm"]), "expected one of lstm"),
        (changed(dropout=0.5), "keys of lstm: found unknown 'dropout'; expected inputs, hidden, peephole"),
        (changed(hidden=...), "keys of lstm: found no 'hidden'; expected inputs, hidden, peephole"),
        (changed(inputs=0), "inputs: found 0; expected a whole number from 1"),
        (changed(inputs=True), "inputs: found True; expected a whole number from 1"),
        (changed(hidden=4), "hidden: found 4; expected a list of 1 to 64 whole numbers"),
        (changed(hidden=[]), "hidden: found []; expected a list of 1 to 64 whole numbers"),
        (changed(hidden=[4, -5]), "hidden: found -5; expected a whole number from 1"),
        (changed(hidden=[1] * 65), "expected a list of 1 to 64 whole numbers"),
        (changed(peephole="no"), "peephole: found no; expected true or false"),
        (changed(head=6), "head of lstm: found 6; expected a JSON object"),
        (changed(head={"units": 6}), "keys of head of lstm: found unknown 'units', no 'outputs'"),
        (
            changed(head={"outputs": 7}),
            "head of a residual lstm: found 7 outputs; expected a head whose outputs",
        ),
        (changed(head=None), "head of a residual lstm: expected a head"),
        ({**to_json(CONV), "kernel": 4}, "kernel: found 4; expected an odd number"),
        ({**to_json(CONV), "size": [4]}, "size: found [4]; expected a list of 2 whole numbers"),
        (
            {**to_json(CONV), "head": {"channels": 2, "kernel": 2}},
            "head.kernel: found 2; expected an odd number",
        ),
        ({**to_json(NETWORK), "patch": 5}, "size: found [8, 6]; expected multiples of patch 5"),
        (
            {**to_json(NETWORK), "horizon": 10**9},
            "horizon: found 1000000000; expected a whole number from 1 to 1000",
        ),
    ],
)
def test_architectures_that_are_refused(tmp_path: Path, architecture: Any, message: str) -> None:
    path = write(tmp_path / "w.safetensors", architecture, random_weights(LSTM))
    with pytest.raises(EdgeLstmError) as caught:
        load_described(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cells.1.weight": None},
            "tensors don't fit the architecture: found missing cells.1.weight; expected cells.0.weight",
        ),
        (
            {"cells.2.bias": np.zeros(4, np.float32)},
            "tensors don't fit the architecture: found unexpected cells.2.bias; expected cells.0.weight",
        ),
        (
            {"cells.0.weight": np.zeros((16, 8), np.float32)},
            "found cells.0.weight F32[16, 8]; expected cells.0.weight F32[16, 7]",
        ),
        (
            {"head.bias": np.zeros(6, np.float64)},
            "another shape or dtype than the architecture's: found head.bias F64[6]; expected head.bias F32[6]",
        ),
        (
            {"head.bias": np.full(6, np.nan, np.float32)},
            "weights that are NaN or infinite: found head.bias; expected finite numbers. The training diverged",
        ),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    changed = {**random_weights(LSTM), **change}
    path = write(tmp_path / "w.safetensors", LSTM, {k: v for k, v in changed.items() if v is not None})
    with pytest.raises(EdgeLstmError) as caught:
        load_described(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_weights_of_another_model_give_a_short_message(tmp_path: Path) -> None:
    weights = {f"block{n}.weight": np.zeros(1, np.float32) for n in range(200)}
    with pytest.raises(EdgeLstmError, match=r"unexpected block0\.weight, .* and 192 more") as caught:
        load_described(write(tmp_path / "w.safetensors", LSTM, weights))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ([1], "preprocessing: found [1]; expected a JSON object: for an input's name, a list of operations"),
        ({"x": {"op": "grey"}}, "expected a JSON object: for an input's name, a list of operations"),
        ({"image": []}, "preprocessing for an input the Signature does not have: found ['image']"),
    ],
)
def test_preprocessing_that_is_refused(tmp_path: Path, preprocessing: Any, message: str) -> None:
    path = write(tmp_path / "w.safetensors", LSTM, random_weights(LSTM), preprocessing)
    with pytest.raises(EdgeLstmError) as caught:
        load_described(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_header_that_claims_enormous_maps(tmp_path: Path) -> None:
    """Without peepholes no tensor has the maps' size, so nothing else would notice."""
    header = {**to_json(ConvLstm(2, (3,), 3, (5, 6))), "size": [2**20, 2**20]}
    path = write(tmp_path / "w.safetensors", header, random_weights(ConvLstm(2, (3,), 3, (5, 6))))
    with pytest.raises(EdgeLstmError, match=r"shape of '.*' is too large"):
        load_described(path)


def test_no_torch_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", NETWORK, random_weights(NETWORK))
    code = (
        "import sys; from edgelstm.frontends.described.graph import load_described, to_step;"
        "from edgelstm.frontends.described.reference import NumpyProgram;"
        f"d = load_described({json.dumps(str(path))}); to_step(d).save({json.dumps(str(tmp_path / 'm.onnx'))});"
        "NumpyProgram(d); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
