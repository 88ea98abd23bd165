"""The torch modules against the papers' equations written out in float64, against torch's own LSTM, and as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from edgelstm.frontends.torch import nn  # noqa: E402

MODULES = {
    "lstm": lambda: nn.LSTM(3, [5, 4]),
    "peephole_lstm": lambda: nn.LSTM(3, [5, 4], peephole=True, outputs=6, residual=True),
    "conv_lstm": lambda: nn.ConvLSTM(2, [4, 3], size=(6, 5), kernel=3),
    "peephole_conv_lstm": lambda: nn.ConvLSTM(
        2, [4], size=(6, 5), kernel=5, peephole=True, outputs=2, output_kernel=3
    ),
    "encoder_forecaster": lambda: nn.EncoderForecaster(
        1, [4, 3], size=(8, 12), horizon=3, patch=4, stem=2, peephole=True, residual=True
    ),
}


def frame(module: nn.StepModule, streams: int = 2) -> torch.Tensor:
    return torch.rand(streams, *module.architecture.frame_shape, dtype=next(module.parameters()).dtype)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter away from its initial value, so that no bias or peephole is zero."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def correlate(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """2-D correlation with zero padding, one output pixel at a time."""
    pad = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for row, column in np.ndindex(*x.shape[2:]):
        window = padded[:, :, row : row + weight.shape[2], column : column + weight.shape[3]]
        out[:, :, row, column] = np.einsum("ncij,ocij->no", window, weight)
    return out


def literal_step(
    cell: torch.nn.Module, x: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shi et al. 2015, eq. 3, one gate after the other, with input and recurrent weights apart."""
    weights = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    size, inputs = h.shape[1], x.shape[1]
    tail = (1,) * (h.ndim - 2)
    p_i, p_f, p_o = (weights.get(p, np.zeros(h.shape[1:])) for p in ("p_i", "p_f", "p_o"))

    def gate(n: int) -> np.ndarray:
        weight = weights["weight"][n * size : (n + 1) * size]
        bias = weights["bias"][n * size : (n + 1) * size].reshape(-1, *tail)
        apply = correlate if tail else lambda a, w: a @ w.T
        return apply(x, weight[:, :inputs]) + apply(h, weight[:, inputs:]) + bias

    i = sigmoid(gate(0) + p_i * c)
    f = sigmoid(gate(1) + p_f * c)
    c_next = f * c + i * np.tanh(gate(2))
    o = sigmoid(gate(3) + p_o * c_next)
    return o * np.tanh(c_next), c_next


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 4),
    hidden=st.integers(1, 5),
    streams=st.integers(1, 3),
    peephole=st.booleans(),
    size=st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_cells_follow_the_equations(inputs, hidden, streams, peephole, size, kernel):
    if size is None:
        cell = (nn.PeepholeLSTMCell if peephole else nn.LSTMCell)(inputs, hidden)
    else:
        cell = nn.ConvLSTMCell(inputs, hidden, kernel, peephole=peephole, size=size)
    randomise(cell.double())
    grid = size or ()
    h, c = torch.zeros(2, streams, hidden, *grid, dtype=torch.float64)
    reference = h.numpy(), c.numpy()
    for _ in range(3):
        x = torch.randn(streams, inputs, *grid, dtype=torch.float64)
        h, c = cell(x, (h, c))
        reference = literal_step(cell, x.numpy(), *reference)
        np.testing.assert_allclose(h.detach().numpy(), reference[0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(c.detach().numpy(), reference[1], rtol=1e-12, atol=1e-14)


def test_lstm_equals_torch_lstm_with_the_same_weights():
    ours, theirs = nn.LSTM(3, [5, 5]).double(), torch.nn.LSTM(3, 5, num_layers=2).double()
    for layer, cell in enumerate(ours.cells):
        joined = [getattr(theirs, f"weight_{part}_l{layer}") for part in ("ih", "hh")]
        cell.weight.data = torch.cat(joined, dim=1).detach()
        cell.bias.data = sum(getattr(theirs, f"bias_{part}_l{layer}") for part in ("ih", "hh")).detach()
    x = torch.randn(20, 2, 3, dtype=torch.float64)
    states = ours.initial_states(2)
    outputs = []
    for step in x:
        y, states = ours(step, *states)
        outputs.append(y)
    expected, (h, c) = theirs(x)
    torch.testing.assert_close(torch.stack(outputs), expected)
    torch.testing.assert_close(torch.stack(states[0::2]), h)
    torch.testing.assert_close(torch.stack(states[1::2]), c)


def test_forget_gate_starts_open():
    bias = nn.ConvLSTMCell(2, 3).bias
    assert bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6


@pytest.mark.parametrize("name", MODULES)
def test_step_modules_take_and_return_states_in_order(name):
    module = MODULES[name]()
    states = module.initial_states(2)
    output, following = module(frame(module), *states)
    assert output.shape == (2, *module.architecture.output_shape)
    assert [s.shape for s in following] == [s.shape for s in states]
    assert {n: tuple(p.shape) for n, p in module.state_dict().items()} == module.architecture.tensors()
    h, c = following[-2:]
    assert (h.abs() <= torch.tanh(c).abs()).all()  # h = o tanh(c) with 0 < o < 1: the order is h, c


def test_residual_adds_the_frame_to_every_lead():
    module = nn.LSTM(2, [3], outputs=6, residual=True)
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    x = torch.tensor([[1.0, 2.0]])
    assert module(x, *module.initial_states())[0].tolist() == [[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]]


def test_forecaster_starts_from_the_encoder_and_sees_no_later_frame():
    module = randomise(MODULES["encoder_forecaster"]().double())
    x = frame(module)
    forecast, states = module(x, *module.initial_states(2))
    below, above = module.forecaster
    (h0, c0), (h1, c1) = below(None, states[:2]), above(below(None, states[:2])[0], states[2:])
    for lead in range(3):
        maps = module.head(torch.cat([h0, h1], dim=1))
        for row, column in np.ndindex(8, 12):  # channel 4·(row in patch) + column in patch holds the pixel
            pixel = maps[:, 4 * (row % 4) + column % 4, row // 4, column // 4] + x[:, 0, row, column]
            torch.testing.assert_close(forecast[:, lead, 0, row, column], pixel)
        h0, c0 = below(None, (h0, c0))
        h1, c1 = above(h0, (h1, c1))
    torch.testing.assert_close(module.encode(x, module.initial_states(2)), states)
    torch.testing.assert_close(module.forecast(x, states), forecast)


def test_without_peepholes_any_size_runs():
    module = nn.EncoderForecaster(1, [4], size=(8, 8), horizon=2, stem=2)
    forecast, _ = module(torch.rand(1, 1, 16, 12), *module.initial_states(size=(16, 12)))
    assert forecast.shape == (1, 2, 1, 16, 12)


@pytest.mark.parametrize("name", MODULES)
def test_save_and_load_give_the_same_module(name, tmp_path: Path):
    module = randomise(MODULES[name]())
    operations = {"x": [{"op": "log1p", "scale": 0.25}]}
    nn.save(module, tmp_path / "model.safetensors", operations)
    again = nn.load(tmp_path / "model.safetensors")
    assert type(again) is type(module)
    assert again.config() == module.config() == nn.from_config(module.config()).config()
    x = frame(module)
    torch.testing.assert_close(
        again(x, *again.initial_states(2)), module(x, *module.initial_states(2)), rtol=0, atol=0
    )
    with safetensors_torch.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["edgelstm.preprocessing"]) == operations
    assert all(parameter.requires_grad for parameter in again.parameters())


def rewrite(path: Path, tensors: dict[str, torch.Tensor], config: object) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    safetensors_torch.save_file(tensors, path, {"edgelstm.architecture": text})
    return path


def test_missing_and_unexpected_weights_are_named(tmp_path: Path):
    tensors = dict(nn.LSTM(3, [5]).state_dict()) | {"cells.9.weight": torch.zeros(1)}
    del tensors["cells.0.bias"]
    path = rewrite(tmp_path / "m.safetensors", tensors, nn.LSTM(3, [5]).config())
    with pytest.raises(EdgeLstmError, match=r"missing cells\.0\.bias; unexpected cells\.9\.weight") as caught:
        nn.load(path)
    assert str(path) in str(caught.value)


def test_weights_of_another_shape_are_named(tmp_path: Path):
    tensors = dict(nn.LSTM(3, [5]).state_dict()) | {"cells.0.weight": torch.zeros(20, 7)}
    path = rewrite(tmp_path / "m.safetensors", tensors, nn.LSTM(3, [5]).config())
    with pytest.raises(
        EdgeLstmError, match=r"cells\.0\.weight F32\[20, 7\]; expected cells\.0\.weight F32\[20, 8\]"
    ):
        nn.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema: found 2"),
        ({"architecture": "gru"}, "architecture: found gru"),
        ({"hidden": []}, "hidden: found []"),
        ({"hidden": ["5"]}, "found 5"),
        ({"inputs": -1}, "inputs: found -1"),
        ({"peephole": "no"}, "peephole: found no"),
        ({"dropout": 0.5}, "dropout"),
        ({"residual": True}, "residual"),
    ],
)
def test_impossible_architectures_are_named(change, message, tmp_path: Path):
    module = nn.LSTM(3, [5])
    path = rewrite(tmp_path / "m.safetensors", module.state_dict(), module.config() | change)
    with pytest.raises(EdgeLstmError, match=r"m\.safetensors") as caught:
        nn.load(path)
    assert message in str(caught.value)


def test_a_huge_claim_is_refused_before_it_is_allocated(tmp_path: Path):
    claim = nn.LSTM(3, [5]).config() | {"hidden": [2**20]}  # 16 TB of weights
    path = rewrite(tmp_path / "m.safetensors", dict(nn.LSTM(3, [5]).state_dict()), claim)
    with pytest.raises(EdgeLstmError, match=r"found cells\.0\.weight F32\[20, 8\]"):
        nn.load(path)


def test_files_that_hold_no_module(tmp_path: Path):
    with pytest.raises(EdgeLstmError, match="does not exist"):
        nn.load(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 40)
    with pytest.raises(EdgeLstmError, match=r"broken.*is not a \.safetensors file"):
        nn.load(broken)
    bare = tmp_path / "bare.safetensors"
    safetensors_torch.save_file({"a": torch.zeros(1)}, bare)
    with pytest.raises(EdgeLstmError, match=r"states no architecture.*nn\.save"):
        nn.load(bare)
    with pytest.raises(EdgeLstmError, match="not JSON"):
        nn.load(rewrite(tmp_path / "text.safetensors", {"a": torch.zeros(1)}, "{"))


def test_a_failed_save_leaves_nothing(tmp_path: Path):
    with pytest.raises(EdgeLstmError, match="can't write"):
        nn.save(nn.LSTM(3, [5]), tmp_path / "absent" / "model.safetensors")
    module = nn.LSTM(3, [5])
    with pytest.raises(TypeError):
        nn.save(module, tmp_path / "model.safetensors", {"x": [{"op": object()}]})
    assert list(tmp_path.iterdir()) == []


def test_wrong_number_of_states_says_how_many(tmp_path: Path):
    module = nn.LSTM(3, [5, 4])
    with pytest.raises(EdgeLstmError, match="found 2; expected 4: h and c of 2 layers"):
        module(frame(module), *module.initial_states(2)[:2])


def test_impossible_modules_are_refused():
    with pytest.raises(EdgeLstmError, match="kernel: found 4"):
        nn.ConvLSTMCell(1, 2, 4)
    with pytest.raises(EdgeLstmError, match=r"needs its size.*height, width"):
        nn.ConvLSTMCell(1, 2, peephole=True)
    with pytest.raises(EdgeLstmError, match="multiples of patch 4"):
        nn.EncoderForecaster(1, [4], size=(10, 8), horizon=2)
