"""What every backend must do, run on every backend present: a Program per ``edgelstm.runtime.protocol``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from contract.backends import BACKENDS, Open, backend
from edgelstm.graph.step import StepModel


@pytest.fixture(params=list(BACKENDS))
def open_program(request: pytest.FixtureRequest) -> Iterator[Open]:
    with backend(request.param) as open_:
        yield open_


MODELS = {
    "lstm": zoo.lstm,
    "lstm, one stream a call": lambda: zoo.lstm(axis=1),
    "conv_lstm": zoo.conv_lstm,
    "two inputs, int64 state": zoo.two_inputs,
    "numbers, no vectors": zoo.running_sum,
    "numbers, one stream a call": lambda: zoo.running_sum(1),
    "no outputs": lambda: zoo.running_sum(outputs=()),
}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> StepModel:
    return MODELS[request.param]()


def frame(step: StepModel, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {t.name: rng.normal(size=t.frame_shape).astype(t.dtype) for t in step.signature.inputs}


def test_new_state_is_the_initial_value(open_program: Open, model: StepModel) -> None:
    program = open_program(model, 3)
    state = program.new_state()
    for row in range(3):
        values = program.read_state(state, row)
        assert set(values) == {s.name for s in model.signature.states}
        for spec in model.signature.states:
            np.testing.assert_array_equal(values[spec.name], spec.initial_value())
            assert values[spec.name].dtype == np.dtype(spec.dtype)
    program.close()
    program.close()


def test_idle_rows_keep_their_bits(open_program: Open, model: StepModel) -> None:
    rng = np.random.default_rng(1)
    program = open_program(model, 5)
    state = program.new_state()
    for active in ([0, 1, 2, 3, 4], [1], [0, 4], [0, 1, 3, 4], [2], [2, 3], [0, 2, 4], [0, 1, 2, 3, 4]):
        before = [program.read_state(state, row) for row in range(5)]
        program.step([frame(model, rng) for _ in active], state, active)
        for row in range(5):
            after = program.read_state(state, row)
            same = all(after[n].tobytes() == before[row][n].tobytes() for n in after)
            assert same == (row not in active), (row, active)


def test_a_row_of_nan_does_not_leak(open_program: Open, model: StepModel) -> None:
    rng = np.random.default_rng(2)
    program = open_program(model, 3)
    state = program.new_state()
    poison = {
        s.name: np.full(s.frame_shape, np.nan if s.dtype.startswith("f") else -1, s.dtype)
        for s in model.signature.states
    }
    program.write_state(state, 1, poison)
    for active in ([0, 2], [0, 1, 2], [0, 1], [1, 2], [2]):
        outputs = program.step([frame(model, rng) for _ in active], state, active)
        for row, output in zip(active, outputs, strict=True):
            if row != 1:
                assert all(np.isfinite(a).all() for a in output.values())
        for row in (0, 2):
            assert all(np.isfinite(a).all() for a in program.read_state(state, row).values())


def test_states_written_are_read_back_and_used(open_program: Open, model: StepModel) -> None:
    rng = np.random.default_rng(3)
    program = open_program(model, 2)
    state = program.new_state()
    first = frame(model, rng)
    for _ in range(3):
        program.step([frame(model, rng)], state, [0])
    saved = program.read_state(state, 0)
    expected = {n: a.copy() for n, a in program.step([first], state, [0])[0].items()}
    program.write_state(state, 1, saved)
    again = program.step([first], state, [1])[0]
    for name in expected:
        np.testing.assert_array_equal(again[name], expected[name])


def test_outputs_are_read_only_and_last_until_the_next_step(open_program: Open, model: StepModel) -> None:
    rng = np.random.default_rng(4)
    program = open_program(model, 2)
    state = program.new_state()
    outputs = program.step([frame(model, rng), frame(model, rng)], state, [0, 1])
    kept = [{n: a.copy() for n, a in o.items()} for o in outputs]
    program.read_state(state, 0)
    program.write_state(state, 1, {s.name: s.initial_value() for s in model.signature.states})
    for output, copy in zip(outputs, kept, strict=True):
        for spec in model.signature.outputs:
            array = output[spec.name]
            assert array.shape == spec.frame_shape
            assert array.dtype == np.dtype(spec.dtype)
            assert not array.flags.writeable
            np.testing.assert_array_equal(array, copy[spec.name])


def test_warming_up_is_no_step_of_any_row(open_program: Open, model: StepModel) -> None:
    """A state that was warmed up is at its initial value, and gives what one that was not gives."""
    rng = np.random.default_rng(5)
    program = open_program(model, 3)
    if not hasattr(program, "warm_up"):
        pytest.skip("it has nothing to warm up")
    warm, cold = program.new_state(), program.new_state()
    program.warm_up(warm)
    for row in range(3):
        for spec in model.signature.states:
            np.testing.assert_array_equal(program.read_state(warm, row)[spec.name], spec.initial_value())
    for active in ([0, 1, 2], [0], [0, 1], [2], [0, 2], [0, 1, 2], [0, 1, 2]):
        frames = [frame(model, rng) for _ in active]
        got = [{n: a.copy() for n, a in o.items()} for o in program.step(frames, warm, active)]
        for a, b in zip(got, program.step(frames, cold, active), strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


def test_rows_together_equal_rows_by_name(open_program: Open, model: StepModel) -> None:
    """``step_rows``, where the engine takes the run; sides that differ from row to row included."""
    rng = np.random.default_rng(6)
    program = open_program(model, 4)
    if not hasattr(program, "step_rows"):
        pytest.skip("it takes rows by name only")
    together, by_name = program.new_state(), program.new_state()
    for first, count in ((0, 4), (0, 3), (1, 2), (0, 4), (2, 2), (3, 1), (0, 4)):
        frames = [frame(model, rng) for _ in range(count)]
        arrays = {n: np.stack([f[n] for f in frames]) for n in frames[0]}
        rows = program.step_rows(arrays, together, first, count)
        active = list(range(first, first + count))
        if rows is None:  # one row a call, or runs that begin elsewhere
            program.step(frames, together, active)
            program.step(frames, by_name, active)
            continue
        got = {n: a.copy() for n, a in rows.items()}
        for k, expected in enumerate(program.step(frames, by_name, active)):
            for name in expected:
                np.testing.assert_allclose(got[name][k], expected[name], rtol=1e-5, atol=1e-6)
        for row in range(4):
            a, b = program.read_state(together, row), program.read_state(by_name, row)
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(BACKENDS))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_equal_lone_runs(name: str, data: st.DataObject) -> None:
    """Any interleaving of rows gives what each row gives when it runs alone."""
    with backend(name) as open_program:
        check_rows_equal_lone_runs(open_program, data)


def check_rows_equal_lone_runs(open_program: Open, data: st.DataObject) -> None:
    step = MODELS[data.draw(st.sampled_from(sorted(MODELS)))]()
    rows = data.draw(st.integers(1, 6))
    schedule = data.draw(
        st.lists(st.sets(st.integers(0, rows - 1), min_size=1).map(sorted), min_size=1, max_size=12)
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    program = open_program(step, rows)
    lone = [open_program(step, 1) for _ in range(rows)]
    state, lone_states = program.new_state(), [p.new_state() for p in lone]
    for active in schedule:
        frames = [frame(step, rng) for _ in active]
        outputs = program.step(frames, state, active)
        for row, one, output in zip(active, frames, outputs, strict=True):
            expected = lone[row].step([one], lone_states[row], [0])[0]
            for name in expected:
                np.testing.assert_allclose(output[name], expected[name], rtol=1e-5, atol=1e-6)
    for row in range(rows):
        values, expected = program.read_state(state, row), lone[row].read_state(lone_states[row], 0)
        for name in expected:
            np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, atol=1e-6)
