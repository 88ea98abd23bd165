"""A step taken back, and the glance that finds one that has to be: against states kept by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from edgelstm.runtime.finite import all_finite, look
from edgelstm.runtime.runner import Runner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    path = tmp_path_factory.mktemp("model") / "sum.onnx"
    zoo.running_sum().save(path)
    with Runner.open(path, streams=6, threads=1, on_bad_frame="pass") as opened:
        yield opened


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["step", "undo", "restore", "reset"]), st.sets(st.integers(0, 5), min_size=1)
        ),
        max_size=30,
    )
)
def test_undo_gives_the_state_before_the_last_step_and_touches_no_other(
    runner: Runner, actions: list[tuple[str, set[int]]]
) -> None:
    """Steps of any few of six streams: as one run of rows, with idle rows inside, and gathered."""
    for name in runner.streams:
        runner.stream(name).close()
    names = [f"s{k}" for k in range(6)]
    values = dict.fromkeys(names, 3.0)
    before: dict[str, float] = {}
    for name in names:
        runner.stream(name)
    for number, (action, which) in enumerate(actions):
        chosen = [names[k] for k in sorted(which)]
        if action == "step":
            before = {name: values[name] for name in chosen}
            runner.step({name: np.array(number + 1, np.float32) for name in chosen})
            values |= {name: values[name] + number + 1 for name in chosen}
        for name in chosen:
            if action == "undo":
                assert runner.stream(name).undo() is (name in before)
                values[name] = before.pop(name, values[name])
            elif action == "restore":
                runner.stream(name).restore({"s": np.array(number, np.float32)})
                values[name] = number
                before.pop(name, None)
            elif action == "reset":
                runner.stream(name).reset()
                values[name] = 3.0
                before.pop(name, None)
        assert {name: float(runner.stream(name).snapshot()["s"]) for name in names} == values


def test_a_glance_sees_nan_in_any_stream_and_none_once_it_is_taken_back(runner: Runner) -> None:
    glance = runner.glance()
    assert glance is not None
    for name in runner.streams:
        runner.stream(name).close()
    for bad in range(6):
        names = [f"s{k}" for k in range(6)]
        for name in names:
            runner.stream(name).reset()
        runner.step({name: np.array(1, np.float32) for name in names})
        assert glance()
        with np.errstate(invalid="ignore"):
            runner.step({n: np.array(math.nan if k == bad else 1, np.float32) for k, n in enumerate(names)})
        assert not glance()
        assert runner.stream(f"s{bad}").undo()
        runner.step({"s0": np.array(1, np.float32), "s5": np.array(1, np.float32)})
        assert glance(), "nothing of it is left to be met again"


def test_a_glance_keeps_ranges(runner: Runner) -> None:
    glance = runner.glance({"s": (-10.0, 10.0)})
    assert glance is not None
    for name in runner.streams:
        runner.stream(name).close()
    stream = runner.stream("a")
    stream.step(np.array(6, np.float32))
    assert glance()
    stream.step(np.array(6, np.float32))
    assert not glance()


@pytest.mark.parametrize("size", [1, 5, 100, 8192, 20000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "float8e4m3fn"])
def test_one_value_that_is_none_is_seen_wherever_it_lies(dtype: str, size: int) -> None:
    from edgelstm.dtypes import LARGEST, from_float32, np_dtype

    largest = LARGEST.get(dtype, 1.7e308)
    plain = dtype in ("float32", "float64", "float16")
    array: Any = np.full(size, largest, dtype) if plain else from_float32(np.full(size, largest), dtype)
    with np.errstate(over="ignore"):
        seen = look(array, dtype)
        assert seen(), "the largest values there are, whose squares overflow"
        bads = [math.nan] if dtype == "float8e4m3fn" else [math.nan, math.inf, -math.inf]
        for bad in bads:
            for place in {0, size // 2, size - 1}:
                kept = array[place].copy()
                array[place] = bad if plain else from_float32(np.float32(bad), dtype)
                assert not seen(), (bad, place)
                array[place] = kept
        assert seen()
    assert array.dtype == np_dtype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (3,), (16,), (17,), (2, 3), (9000,), ()])
def test_a_frame_with_one_value_that_is_none_is_seen(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.full(shape, np.finfo(dtype).max, dtype)
    with np.errstate(over="ignore"):
        assert all_finite(array, dtype), "the largest values there are, whose sum overflows"
        for bad in (math.nan, math.inf, -math.inf):
            for place in {0, array.size // 2, array.size - 1}:
                kept = array.flat[place]
                array.flat[place] = bad
                assert not all_finite(array, dtype), (bad, place)
                array.flat[place] = kept
        assert all_finite(np.zeros(0, dtype), dtype)


def test_after_a_step_taken_back_a_stream_goes_on_bit_for_bit(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    frames = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    with Runner.open(tmp_path / "m.onnx", streams=2, threads=1) as opened:
        a, b = opened.stream("a"), opened.stream("b")
        for k, frame in enumerate(frames):
            wanted = a.step(frame, copy=True)
            if k % 3 == 0:
                b.step(frame * 100)
                assert b.undo()
                assert b.frames == k
            got = b.step(frame)
            for name, y in wanted.items():
                np.testing.assert_array_equal(got[name], y)
