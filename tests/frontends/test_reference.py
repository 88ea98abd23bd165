from __future__ import annotations

import numpy as np
import pytest
from architectures import architectures, random_described
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.frontends.described.architecture import ConvLstm, EncoderForecaster, LinearHead, Lstm
from edgelstm.frontends.described.graph import Described
from edgelstm.frontends.described.reference import NumpyProgram, conv2d, pixel_shuffle

NETWORK = EncoderForecaster(channels=1, size=(6, 4), patch=2, stem=3, hidden=(4,), kernel=3, horizon=2)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_one_cell_by_hand() -> None:
    """One unit, one step, the equations written out (Gers & Schmidhuber 2000): o sees the new c."""
    weights = {
        "cells.0.weight": np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]),
        "cells.0.bias": np.array([0.01, 0.02, 0.03, 0.04]),
        "cells.0.p_i": np.array([0.11]),
        "cells.0.p_f": np.array([0.12]),
        "cells.0.p_o": np.array([0.13]),
    }
    program = NumpyProgram(Described(Lstm(1, (1,), peephole=True), weights))
    state = program.new_state()
    x, h, c = 0.5, -0.25, 0.75
    program.write_state(state, 0, {"h0": np.array([h]), "c0": np.array([c])})
    (outputs,) = program.step([{"x": np.array([x], np.float32)}], state, [0])
    i = sigmoid(0.1 * x + 0.2 * h + 0.01 + 0.11 * c)
    f = sigmoid(0.3 * x + 0.4 * h + 0.02 + 0.12 * c)
    g = np.tanh(0.5 * x + 0.6 * h + 0.03)
    new_c = f * c + i * g
    o = sigmoid(0.7 * x + 0.8 * h + 0.04 + 0.13 * new_c)
    assert state["c0"][0, 0] == pytest.approx(new_c, rel=1e-12)
    assert state["h0"][0, 0] == pytest.approx(o * np.tanh(new_c), rel=1e-12)
    assert outputs["y"][0] == np.float32(o * np.tanh(new_c))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_convolution_is_the_sum_it_says(n, channels, outputs, kernel, height, width) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, channels, height, width))
    weight, bias = rng.standard_normal((outputs, channels, kernel, kernel)), rng.standard_normal(outputs)
    result = conv2d(x, weight, bias)
    pad = kernel // 2
    for row in range(height):
        for column in range(width):
            expected = np.tile(bias, (n, 1))
            for a in range(kernel):
                for b in range(kernel):
                    at = row + a - pad, column + b - pad
                    if 0 <= at[0] < height and 0 <= at[1] < width:
                        expected += x[:, :, at[0], at[1]] @ weight[:, :, a, b].T
            np.testing.assert_allclose(result[:, :, row, column], expected, rtol=0, atol=1e-12)


def test_strided_convolution_sees_each_patch_once() -> None:
    x = np.arange(24.0).reshape(1, 1, 4, 6)
    result = conv2d(x, np.ones((1, 1, 2, 2)), np.zeros(1), stride=2, padding="valid")
    np.testing.assert_array_equal(result[0, 0], [[14, 22, 30], [62, 70, 78]])


def test_pixel_shuffle_lays_depth_out_in_space() -> None:
    x = np.array([10, 11, 12, 13, 20, 21, 22, 23]).reshape(1, 8, 1, 1)
    np.testing.assert_array_equal(pixel_shuffle(x, 2)[0], [[[10, 11], [12, 13]], [[20, 21], [22, 23]]])


@settings(max_examples=25, deadline=None)
@given(architectures, st.lists(st.sets(st.integers(0, 2)).map(sorted), min_size=1, max_size=8))
def test_streams_are_alone(architecture, schedule) -> None:
    """Whatever other rows do, a row computes what it computes alone; a row without a frame keeps its bits."""
    described = random_described(architecture)
    program, alone = NumpyProgram(described, 3), NumpyProgram(described, 1)
    state, states = program.new_state(), [alone.new_state() for _ in range(3)]
    rng = np.random.default_rng(1)
    for active in schedule:
        if not active:
            continue
        before = {name: value.copy() for name, value in state.items()}
        frames = [{"x": rng.standard_normal(architecture.frame_shape, np.float32)} for _ in active]
        outputs = program.step(frames, state, active)
        for row, frame, output in zip(active, frames, outputs, strict=True):
            (expected,) = alone.step([frame], states[row], [0])
            np.testing.assert_allclose(
                output[architecture.output_name], expected[architecture.output_name], 1e-6, 1e-6
            )
        for row in set(range(3)) - set(active):
            for name, value in state.items():
                assert value[row].tobytes() == before[name][row].tobytes()


def test_state_goes_out_and_in_as_the_signature_says() -> None:
    program = NumpyProgram(random_described(NETWORK), 2)
    state, frame = program.new_state(), {"x": np.ones((1, 6, 4), np.float32)}
    program.step([frame], state, [1])
    saved = program.read_state(state, 1)
    assert {name: (value.dtype.name, value.shape) for name, value in saved.items()} == {
        s.name: (s.dtype, s.frame_shape) for s in program.signature.states
    }
    first = program.step([frame], state, [1])[0]["forecast"].copy()
    program.write_state(state, 0, saved)
    second = program.step([frame], state, [0])[0]["forecast"]
    np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)


def test_outputs_are_read_only_float32_of_the_declared_shape() -> None:
    program = NumpyProgram(random_described(NETWORK))
    (outputs,) = program.step([{"x": np.ones((1, 6, 4), np.float32)}], program.new_state(), [0])
    assert outputs["forecast"].shape == program.signature.output("forecast").frame_shape == (2, 1, 6, 4)
    assert outputs["forecast"].dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        outputs["forecast"][0] = 0


@pytest.mark.parametrize(
    "architecture", [Lstm(2, (3,), head=LinearHead(2)), ConvLstm(1, (2,), 3, (4, 4)), NETWORK]
)
def test_float32_stays_close_to_float64(architecture) -> None:
    described = random_described(architecture)
    results = []
    for dtype in (np.float32, np.float64):
        program = NumpyProgram(described, dtype=dtype)
        state, rng = program.new_state(), np.random.default_rng(0)
        assert {value.dtype for value in state.values()} == {np.dtype(dtype)}
        for _ in range(30):
            frame = {"x": rng.standard_normal(architecture.frame_shape, np.float32)}
            (outputs,) = program.step([frame], state, [0])
        results.append(outputs[architecture.output_name])
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5)
