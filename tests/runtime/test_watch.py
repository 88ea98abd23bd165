"""Calls of our own operators that look at the states they write: against looks at every stream's state by NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_conv_gru_cells import AFTER, BEFORE, conv_gru
from test_native import BLEND

import native_library
import zoo
from edgelstm.graph.step import StepModel
from edgelstm.pipeline.service.loop import Loop
from edgelstm.runtime.native.session import IS_BAD
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.runner import Runner

LARGEST = float(np.finfo(np.float32).max)
#: A state of the LSTM.
C = "a0_c"
ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-42, -1e-42, LARGEST, -LARGEST, 1.0, -1.0, 0.5]
#: Few, so that neighbours often have the same.
BOUNDS = st.sampled_from([(-LARGEST, LARGEST), (-1.0, 1.0), (-0.0, 1e-42), (0.0, 0.0)])


@pytest.fixture(scope="module")
def library() -> Path:
    return native_library.built()


@pytest.fixture(scope="module")
def older(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library without the function, as one that was built earlier."""
    data = library.read_bytes()
    assert b"\0edgelstm_watch\0" in data
    path = tmp_path_factory.mktemp("older") / library.name
    path.write_bytes(data.replace(b"\0edgelstm_watch\0", b"\0edgelstm_w_tch\0"))
    return path


def opened(step: StepModel, library: Path | None, streams: int = 6, threads: int = 1) -> Runner:
    data = step.to_bytes()
    program = (
        OrtProgram(data, streams=streams, threads=threads)
        if library is None
        else native_library.opened(data, library, native=True, streams=streams, threads=threads)
    )
    runner = Runner(program, on_bad_frame="pass")
    for k in range(streams):
        runner.stream(f"s{k}")
    return runner


def looks_itself(runner: Runner) -> bool:
    return runner._state.watch is not None


@pytest.fixture(scope="module")
def steps(library: Path) -> Iterator[Any]:
    """A step whose call looks wherever it is told."""
    with opened(zoo.lstm(), library, 1) as runner:
        runner.glance()
        runner.stream("s0").step(np.zeros(3, np.float32))
        yield next(iter(runner._state.calls.values())).steps


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.one_of(st.sampled_from(ODD), st.floats(width=32)), max_size=40), BOUNDS),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_a_look_is_that_of_numpy_for_every_number(
    steps: Any, values: list[tuple[list[float], tuple[float, float]]], together: bool
) -> None:
    """Of several pieces, side by side in memory or not, each with bounds of its own."""
    arrays = [np.array(v, np.float32) for v, _ in values]
    if together:
        arrays = np.split(np.concatenate(arrays), np.cumsum([len(a) for a in arrays])[:-1])
    pieces = [
        (a, *(float(np.float32(b)) for b in bounds)) for a, (_, bounds) in zip(arrays, values, strict=True)
    ]
    steps.look(pieces)
    good = all(((a >= np.float32(low)) & (a <= np.float32(high))).all() for a, low, high in pieces)
    for _ in range(2):
        assert steps.run() == (0 if good else IS_BAD)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 8192, 20001])
def test_one_bad_number_is_seen_wherever_it_lies(steps: Any, size: int) -> None:
    array = np.full(size, LARGEST, np.float32)
    steps.look([(array, -LARGEST, LARGEST)])
    for place in {0, size // 3, size - 2, size - 1}:
        for bad in (math.nan, math.inf, -math.inf):
            assert steps.run() == 0
            kept, array[place] = array[place], bad
            assert steps.run() == IS_BAD, (place, bad)
            array[place] = kept


def spoil(runner: Runner, name: str, value: float, state: str = C, place: int = -1) -> None:
    """One number of a stream's state."""
    held = dict(runner.stream(name).snapshot())
    held[state].reshape(-1)[place] = value
    runner.stream(name).restore(held)


@pytest.mark.parametrize(
    ("step", "threads"),
    [
        (zoo.lstm(), 1),
        (zoo.conv_lstm(peephole=False, size=5), 1),
        (zoo.conv_lstm(hidden=6, peephole=False, size=7), 1),
        (zoo.conv_lstm(2, 4, 48), 2),
        (conv_gru(AFTER + BLEND), 2),
        (conv_gru(BEFORE + BLEND), 1),
    ],
    ids=[
        "cells",
        "small maps",
        "gates over small maps",
        "gates that threads share",
        "ConvGRU",
        "ConvGRU, reset before",
    ],
)
def test_nan_in_one_of_many_streams_is_seen_in_that_step_and_is_that_stream_s(
    library: Path, step: StepModel, threads: int
) -> None:
    shape = step.signature.inputs[0].frame_shape
    state = next((s.name for s in step.signature.states if "c" in s.name), "h")
    rng = np.random.default_rng(0)
    with opened(step, library, threads=threads) as runner:
        glance = runner.glance()
        assert glance is not None
        assert looks_itself(runner)
        names = list(runner.streams)
        for bad in names:
            frames = {n: rng.normal(size=shape).astype(np.float32) for n in names}
            runner.step(frames)
            assert glance()
            spoil(runner, bad, math.nan, state)
            runner.step(frames)
            assert not glance()
            assert glance(), "it is asked of the last step once"
            for name in names:
                held = runner.stream(name).snapshot()
                assert all(np.isfinite(a).all() for a in held.values()) == (name != bad)
            assert runner.stream(bad).undo()
            runner.stream(bad).reset()
            runner.step(frames)
            assert glance()


@pytest.mark.parametrize(
    ("step", "operator"),
    [
        (zoo.conv_lstm(2, 19, 11, peephole=False), "FusedConvLSTMCell"),  # lanes and tiles that are not full
        (zoo.conv_lstm(4, 16, 12, peephole=False), "FusedConvLSTMCell"),
        (zoo.conv_lstm(2, 3, 24, peephole=False), "FusedGates"),
        (conv_gru(AFTER + BLEND), "FusedConvGRUCell"),
        (conv_gru(BEFORE + BLEND), "FusedConvGRUCell"),
    ],
    ids=["uneven", "even", "gates", "ConvGRU", "ConvGRU, reset before"],
)
def test_a_number_is_seen_wherever_it_lies_in_a_map(library: Path, step: StepModel, operator: str) -> None:
    with opened(step, library, 2) as runner:
        assert operator in runner._program.native.counts  # type: ignore[attr-defined]
        state = step.signature.states[-1].name  # c, of a ConvGRU h
        glance = runner.glance({state: (-10.0, 10.0)})
        assert glance is not None
        assert looks_itself(runner)
        frames = dict.fromkeys(runner.streams, np.zeros(step.signature.inputs[0].frame_shape, np.float32))
        size, seen = runner.stream("s0").snapshot()[state].size, set()
        for place in {0, size // 3, size // 2, size - 12, size - 1}:
            for value, good in (
                (9.0, True),
                (1e6, False),
                (-1e6, False),
                (math.nan, False),
                (math.inf, False),
            ):
                for name in runner.streams:
                    runner.stream(name).reset()
                runner.step(frames)
                assert glance()
                spoil(runner, "s1", value, state, place)
                runner.step(frames)
                held = runner.stream("s1").snapshot()[state]
                fits = bool(((held >= -10) & (held <= 10)).all())
                assert glance() is fits, (place, value)
                # Of a large h a ConvGRU may let go: it is among what its gates read.
                assert fits is good or (state == "h" and abs(value) == 1e6), (place, value)
                seen.add((math.isfinite(value), fits))
        assert seen == {(True, True), (True, False), (False, False)}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ranged=st.booleans())
@pytest.mark.filterwarnings("ignore:overflow")
def test_whatever_is_done_between_steps_no_bad_state_passes(
    pair: tuple[Runner, Runner], data: st.DataObject, ranged: bool
) -> None:
    """Runs of rows with idle ones inside, single ones, gathered ones; states that are set, reset, taken back."""
    ranges = {C: (-0.5, 0.5)} if ranged else {}
    looked, plain = pair
    glances: list[Callable[[], bool]] = []
    for runner in pair:
        for name in runner.streams:
            runner.stream(name).reset()
        glance = runner.glance(ranges)
        assert glance is not None
        glances.append(glance)
    assert looks_itself(looked)
    assert not looks_itself(plain)
    names = list(looked.streams)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 8))):
        what = data.draw(st.sampled_from(["step", "step", "spoil", "reset", "undo"]))
        which = data.draw(st.one_of(st.just(set(names)), st.sets(st.sampled_from(names), min_size=1)))
        if what == "step":
            frames = {n: rng.normal(size=3).astype(np.float32) for n in sorted(which)}
            for runner in pair:
                runner.step(frames)
            states = {n: looked.stream(n).snapshot() for n in names}
            good = {n: _is_good(s, ranges) for n, s in states.items()}
            for glance in glances:
                seen = glance()
                assert not seen or all(good[n] for n in which), "never a bad one unseen"
                idle = which != set(names)  # what is computed for them may be anything, and goes nowhere
                assert seen or idle or not all(good.values()), "nor is a good one doubted"
        for name in sorted(which):
            value = data.draw(st.sampled_from(ODD)) if what == "spoil" else 0.0
            for runner in pair:
                if what == "spoil":
                    spoil(runner, name, value)
                elif what == "reset":
                    runner.stream(name).reset()
                elif what == "undo":
                    runner.stream(name).undo()


@pytest.fixture(scope="module")
def pair(library: Path) -> Iterator[tuple[Runner, Runner]]:
    with opened(zoo.lstm(), library) as looked, opened(zoo.lstm(), None) as plain:
        yield looked, plain


def _is_good(state: Any, ranges: dict[str, tuple[float, float]]) -> bool:
    return all(np.isfinite(a).all() for a in state.values()) and all(
        (state[n] >= low).all() and (state[n] <= high).all() for n, (low, high) in ranges.items()
    )


def test_a_bound_between_two_numbers_of_float32_is_kept_exactly(library: Path) -> None:
    """As float32, 0.1 is a little more than 0.1."""
    with opened(zoo.lstm(), library, 1) as runner:
        stream = runner.stream("s0")
        stream.step(np.ones(3, np.float32))
        least, most = (float(f(stream.snapshot()[C])) for f in (np.min, np.max))
        for low, high, good in (
            (least, most, True),
            (math.nextafter(least, math.inf), most, False),
            (least, math.nextafter(most, -math.inf), False),
            (-math.inf, math.inf, True),
            (1e300, math.inf, False),
        ):
            glance = runner.glance({C: (low, high)})
            assert glance is not None
            stream.reset()
            stream.step(np.ones(3, np.float32))
            assert glance() is good, (low, high)


def test_an_older_glance_lets_nothing_pass_unseen(library: Path) -> None:
    with opened(zoo.lstm(), library, 1) as runner:
        first, second = runner.glance(), runner.glance()
        assert first is not None
        assert second is not None
        runner.stream("s0").step(np.ones(3, np.float32))
        assert second()
        assert not first(), "who asks it is to look for himself"
        assert not first()


def test_a_library_that_was_built_earlier_leaves_the_look_to_numpy(older: Path) -> None:
    with opened(zoo.lstm(), older) as runner:
        glance = runner.glance({C: (-1.0, 1.0)})
        assert glance is not None
        assert not looks_itself(runner)
        frames = {n: np.ones(3, np.float32) for n in runner.streams}
        runner.step(frames)
        assert glance()
        for value in (math.nan, 1e9):
            spoil(runner, "s3", value)
            runner.step(frames)
            assert not glance()
            assert runner.stream("s3").undo()
            runner.stream("s3").reset()
            runner.step(frames)
            assert glance()


def test_a_loop_sees_bad_states_of_whatever_session_takes_over(library: Path, older: Path) -> None:
    loop = Loop("m", opened(zoo.lstm(), library, 1), 1, 0.0)
    for place in (None, library, older, library):
        runner = opened(zoo.lstm(), place, 1)
        loop.go_on_with(runner, str(place))
        assert looks_itself(runner) is (place is library)
        runner.step({"s0": np.ones(3, np.float32)})
        assert loop._are_good()
        spoil(runner, "s0", math.inf)
        runner.step({"s0": np.ones(3, np.float32)})
        assert not loop._are_good()
    loop.runner.close()
