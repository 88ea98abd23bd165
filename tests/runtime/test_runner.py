"""Streams of a Runner: they join, advance, leave, and never see each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import zoo
from edgelstm.dtypes import LARGEST, from_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime import Runner
from stepping import from_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    zoo.lstm().save(tmp_path / "lstm.onnx")
    return tmp_path / "lstm.onnx"


def x(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=3).astype(np.float32)


def test_streams_advance_together_and_apart(path: Path) -> None:
    with Runner.open(path, streams=3) as runner, Runner.open(path) as other:
        lone = other.stream("lone")
        front, rear = runner.stream("front"), runner.stream("rear")
        runner.step({"rear": x(1), "front": x(0)})
        rear.step(x(2))
        got = runner.step({"front": x(3)})["front"]["y"].copy()
        lone.step(x(0))
        np.testing.assert_allclose(got, lone.step(x(3))["y"], rtol=1e-6)
        assert (front.frames, rear.frames) == (2, 2)
        assert runner.streams == ("front", "rear")


def test_what_is_masked_was_never_measured(path: Path) -> None:
    """netCDF4 gives masked arrays, whose fill values are finite."""
    masked = np.ma.array([1e20, 1, 2], mask=[True, False, False], dtype=np.float32)
    with Runner.open(path, streams=2) as runner:
        stream = runner.stream("a")
        for give in (stream.step, lambda f: runner.step_all(f[None])):
            with pytest.raises(EdgeLstmError, match="NaN or infin"):
                give(masked)
    with Runner.open(path, streams=2, on_bad_frame="zero") as runner:
        a, b = runner.stream("a"), runner.stream("b")
        unmasked = np.array([0, 1, 2], np.float32)
        np.testing.assert_array_equal(a.step(masked)["y"], b.step(unmasked)["y"])
        whole = np.ma.array(unmasked)
        np.testing.assert_array_equal(a.step(whole)["y"], b.step(unmasked)["y"])


def test_a_name_is_text(path: Path) -> None:
    with Runner.open(path, streams=2) as runner:
        runner.stream("1")
        for name in (1, 1.0, None):
            with pytest.raises(EdgeLstmError, match="expected a name"):
                runner.stream(name)  # type: ignore[arg-type]
        assert runner.streams == ("1",)


def test_outputs_come_in_the_order_given(path: Path) -> None:
    with Runner.open(path, streams=2) as runner:
        runner.stream("a")
        runner.stream("b")
        assert list(runner.step({"b": x(1), "a": x(2)})) == ["b", "a"]


@pytest.mark.parametrize("frame", [x(0), {"x": x(0)}])
def test_outputs_are_kept_unless_views_are_asked_for(path: Path, frame: Any) -> None:
    with Runner.open(path, streams=2) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        for step in (a.step, lambda f: runner.step({"a": f, "b": f})["b"]):
            first = step(frame)["y"]
            held = first.copy()
            step(frame)
            np.testing.assert_array_equal(first, held)
            assert first.flags.writeable
        assert not b.step(frame, copy=False)["y"].flags.writeable


def test_reset_snapshot_restore(path: Path) -> None:
    with Runner.open(path, streams=2) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        first = a.step(x(0), copy=True)
        snapshot = a.snapshot()
        second = a.step(x(1), copy=True)
        a.reset()
        np.testing.assert_array_equal(a.step(x(0))["y"], first["y"])
        b.restore(snapshot)
        np.testing.assert_array_equal(b.step(x(1))["y"], second["y"])
        snapshot["z9_h"][:] = 1e9
        np.testing.assert_array_equal(a.step(x(1))["y"], second["y"])


def test_snapshots_travel_in_another_float_dtype(path: Path) -> None:
    with Runner.open(path) as runner:
        stream = runner.stream("a")
        stream.step(x(0))
        wide = {n: v.astype(np.float64) for n, v in stream.snapshot().items()}
        expected = stream.step(x(1), copy=True)
        stream.restore(wide)
        np.testing.assert_array_equal(stream.step(x(1))["y"], expected["y"])


def test_a_place_is_free_again_after_leaving_and_starts_afresh(path: Path) -> None:
    with Runner.open(path, streams=1) as runner:
        old = runner.stream("old")
        first = old.step(x(0), copy=True)
        with pytest.raises(
            EdgeLstmError, match=r"no place for stream 'new': found 1 stream: old\. Close one"
        ):
            runner.stream("new")
        old.close()
        old.close()
        np.testing.assert_array_equal(runner.stream("new").step(x(0))["y"], first["y"])
        with pytest.raises(EdgeLstmError, match="stream 'old' has left the runner"):
            old.step(x(0))


def test_several_inputs(tmp_path: Path) -> None:
    zoo.two_inputs().save(tmp_path / "m.onnx")
    with Runner.open(tmp_path / "m.onnx") as runner:
        stream = runner.stream("s")
        a, b = np.array([1, 2], np.float32), np.array([10, 20], np.float32)
        out = stream.step({"a": a, "b": b})
        np.testing.assert_array_equal(out["ab"], [11, 22])
        out = stream.step({"b": b, "a": a})
        np.testing.assert_array_equal(out["total_next"], [16.5, 33])
        np.testing.assert_array_equal(stream.snapshot()["count"], [9])
        with pytest.raises(EdgeLstmError, match=r"found one array; expected a mapping with the inputs b, a"):
            stream.step(a)
        with pytest.raises(EdgeLstmError, match=r"found inputs a; expected b, a"):
            stream.step({"a": a})


BAD_FRAMES = {
    "shape": (
        np.zeros(4, np.float32),
        r"stream 's', input 'x': found float32\[4\]; expected .* float32\[3\]",
    ),
    "stream axis": (np.zeros((1, 3), np.float32), r"Leave the stream axis out: frame\[0\]"),
    "dtype": (np.zeros(3), r"found float64\[3\]; expected .*Convert it: frame.astype\(np.float32\)"),
    "no array": ([0.0, 0.0, 0.0], r"found list; expected a NumPy array float32\[3\]"),
    "NaN": (np.array([0, np.nan, np.inf], np.float32), r"frame 1 of stream 's'.*found 2 values that are NaN"),
    "no such input": ({"y": np.zeros(3, np.float32)}, r"found inputs y; expected x"),
}


@pytest.mark.parametrize("case", sorted(BAD_FRAMES))
def test_a_bad_frame_is_named_and_no_state_moves(path: Path, case: str) -> None:
    bad, message = BAD_FRAMES[case]
    with Runner.open(path, streams=2) as runner:
        good, stream = runner.stream("good"), runner.stream("s")
        runner.step({"good": x(0), "s": x(1)})
        before = good.snapshot(), stream.snapshot()
        with pytest.raises(EdgeLstmError, match=message):
            runner.step({"good": x(2), "s": bad})
        for old, new in zip(before, (good.snapshot(), stream.snapshot()), strict=True):
            assert all(old[n].tobytes() == new[n].tobytes() for n in old)
        assert (good.frames, stream.frames) == (1, 1)


def test_frames_that_overflow_when_summed_are_finite(path: Path) -> None:
    with Runner.open(path) as runner:
        runner.stream("s").step(np.full(3, 3e38, np.float32))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [3, 100_000])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8e4m3fn", "float32", "float64"])
def test_any_value_that_is_not_finite_is_seen(size: int, dtype: str) -> None:
    from edgelstm.runtime.finite import all_finite

    def stored(values: Any) -> Any:
        return np.asarray(values) if dtype == "float64" else from_float32(values, dtype)

    largest = LARGEST.get(dtype, np.finfo(np.float64).max)
    assert all_finite(stored(np.full(size, largest)), dtype)
    assert all_finite(stored(np.full((size, 1), -largest)).T, dtype)
    for value in (np.nan,) if dtype == "float8e4m3fn" else (np.nan, np.inf, -np.inf):
        for place in (0, size // 2, size - 1):
            frame = np.zeros(size)
            frame[place] = value
            assert not all_finite(stored(frame), dtype)
            frame[place - 1] = -value
            assert not all_finite(stored(frame), dtype)


def test_a_frame_in_bfloat16_is_looked_at_as_any_other(tmp_path: Path) -> None:
    """Its array is of whole numbers, in which nothing is NaN."""
    step = from_text(
        "g (bfloat16[N,2] x, float[N,2] s) => (float[N,2] n) { f = Cast<to=1>(x) n = Add(f, s) }", s="n"
    )
    step.save(tmp_path / "model.onnx")
    bad = from_float32(np.array([1, np.nan]), "bfloat16")
    for policy, message in (("error", "1 value that is NaN"), ("skip", None), ("zero", None)):
        with Runner.open(tmp_path / "model.onnx", on_bad_frame=policy) as runner:  # type: ignore[arg-type]
            stream = runner.stream("s")
            ways: list[Any] = [lambda s=stream: s.step(bad), lambda r=runner: r.step({"s": bad})]
            for way in ways:
                if message is None:
                    way()
                else:
                    with pytest.raises(EdgeLstmError, match=message):
                        way()
            if policy == "zero":
                runner.step_all(bad[None])
            else:
                with pytest.raises(EdgeLstmError, match="NaN or infinity in those of s"):
                    runner.step_all(bad[None])
            wanted = {"error": [0, 0], "skip": [0, 0], "zero": [3, 0]}[policy]
            np.testing.assert_array_equal(stream.snapshot()["s"], wanted)
            assert stream.skipped == (2 if policy == "skip" else 0)


def test_policy_skip_and_zero(path: Path) -> None:
    bad = np.array([0.5, np.nan, -np.inf], np.float32)
    with Runner.open(path, on_bad_frame="skip") as runner:
        stream = runner.stream("s")
        stream.step(x(0))
        before = stream.snapshot()
        assert stream.step(bad) == {}
        assert all(before[n].tobytes() == v.tobytes() for n, v in stream.snapshot().items())
        assert (stream.frames, stream.skipped) == (1, 1)
    with Runner.open(path, on_bad_frame="zero") as runner, Runner.open(path) as other:
        got = runner.stream("s").step(bad)["y"]
        np.testing.assert_array_equal(got, other.stream("s").step(np.array([0.5, 0, 0], np.float32))["y"])
    with pytest.raises(EdgeLstmError, match="on_bad_frame: found ignore; expected error or skip or zero"):
        Runner.open(path, on_bad_frame="ignore")  # type: ignore[arg-type]


def test_the_processor_still_knows_denormal_numbers(path: Path) -> None:
    """A runtime may set flush-to-zero for the calling thread, and with it change the user's own arithmetic."""
    with Runner.open(path) as runner:
        runner.stream("s").step(x())
    assert np.float64(5e-324) * np.float64(1) > 0


def test_frames_that_are_single_numbers(tmp_path: Path) -> None:
    zoo.running_sum().save(tmp_path / "sum.onnx")
    with Runner.open(tmp_path / "sum.onnx", streams=5) as runner:
        streams = {name: runner.stream(name) for name in "abcde"}
        one = np.array(1, np.float32)
        for k in range(3):  # all, neighbours, few and far apart: every way through the program
            got = runner.step(dict.fromkeys(("abcde", "ab", "ae")[k], one))
            assert got["a"]["y"] == 2 * (3 + k + 1)
        assert {n: float(s.snapshot()["s"]) for n, s in streams.items()} == {
            "a": 6, "b": 5, "c": 4, "d": 4, "e": 5
        }  # fmt: skip


def test_a_copy_is_made_before_the_next_turn(path: Path) -> None:
    """Another thread's step may come as soon as the lock is free, and writes over the outputs."""
    with Runner.open(path, streams=8) as runner:
        for k in range(8):
            runner.stream(str(k))
        first = runner.stream("0")
        expected = first.step(x(0), copy=True)["y"]

        class OthersComeAtOnce:
            waiting = True
            lock = runner._lock

            def __enter__(self) -> None:
                self.lock.acquire()

            def __exit__(self, *_: object) -> None:
                self.lock.release()
                if self.waiting:
                    self.waiting = False
                    runner.step({"1": x(1), "7": x(2)})  # far apart: their outputs lie in the first rows

        for step in (lambda: first.step(x(0), copy=True), lambda: runner.step({"0": x(0)}, copy=True)["0"]):
            first.reset()
            runner._lock = OthersComeAtOnce()  # type: ignore[assignment]
            np.testing.assert_array_equal(step()["y"], expected)
            runner._lock = OthersComeAtOnce.lock


def test_unknown_and_closed(path: Path) -> None:
    runner = Runner.open(path)
    stream = runner.stream("front")
    with pytest.raises(EdgeLstmError, match=r"unknown stream 'rear': found streams front\. Join it first"):
        runner.step({"rear": x()})
    assert runner.step({}) == {}
    runner.close()
    runner.close()
    for call in (lambda: stream.step(x()), lambda: runner.stream("a"), stream.snapshot, stream.reset):
        with pytest.raises(EdgeLstmError, match="closed"):
            call()


def test_bad_snapshots(path: Path) -> None:
    with Runner.open(path) as runner:
        stream = runner.stream("s")
        good = stream.snapshot()
        with pytest.raises(EdgeLstmError, match="snapshot for stream 's': found states"):
            stream.restore({})
        with pytest.raises(EdgeLstmError, match=r"state 'z9_h': found float32\[9\]; expected float32\[4\]"):
            stream.restore({**good, "z9_h": np.zeros(9, np.float32)})
        with pytest.raises(EdgeLstmError, match=r"found int64\[4\]"):
            stream.restore({**good, "z9_h": np.zeros(4, np.int64)})


class Streams(RuleBasedStateMachine):
    """Random joins, leaves, resets, snapshots and steps; each stream is compared with a lone run of its own."""

    names = st.sampled_from(["a", "b", "c", "d"])

    @initialize(conv=st.booleans())
    def open(self, conv: bool) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "m.onnx"
        step = zoo.conv_lstm() if conv else zoo.lstm()
        step.save(path)
        self.shape = step.signature.inputs[0].frame_shape
        self.runner = Runner.open(path, streams=4, threads=1)
        self.lone = Runner.open(path, streams=4, threads=1)
        self.rng = np.random.default_rng(0)
        self.saved: dict[str, np.ndarray] | None = None

    @rule(name=names)
    def join(self, name: str) -> None:
        self.runner.stream(name)
        self.lone.stream(name)

    @rule(name=names)
    def leave(self, name: str) -> None:
        self.runner.stream(name).close()
        self.lone.stream(name).close()

    @rule(name=names)
    def reset(self, name: str) -> None:
        self.runner.stream(name).reset()
        self.lone.stream(name).reset()

    @rule(name=names)
    def snapshot(self, name: str) -> None:
        self.saved = self.runner.stream(name).snapshot()

    @precondition(lambda self: self.saved is not None)
    @rule(name=names)
    def restore(self, name: str) -> None:
        assert self.saved is not None
        self.runner.stream(name).restore(self.saved)
        self.lone.stream(name).restore(self.saved)

    @rule(which=st.sets(names, min_size=1))
    def step(self, which: set[str]) -> None:
        frames = {name: self.rng.normal(size=self.shape).astype(np.float32) for name in sorted(which)}
        for name in frames:
            self.runner.stream(name)
        idle = {n: self.runner.stream(n).snapshot() for n in self.runner.streams if n not in frames}
        results = self.runner.step(frames, copy=True)
        for name, frame in frames.items():
            for output, expected in self.lone.stream(name).step(frame).items():
                np.testing.assert_allclose(results[name][output], expected, rtol=2e-5, atol=2e-6)
        for name, before in idle.items():
            after = self.runner.stream(name).snapshot()
            assert all(after[n].tobytes() == before[n].tobytes() for n in before)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()
            self.lone.close()
            self.folder.cleanup()


Streams.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestStreams = Streams.TestCase


def test_one_array_of_all_frames(path: Path) -> None:
    """What it refuses, what it does with NaN; that it equals frames by name is in tests/gpu and the contract."""
    bad = np.array([[0.5, 1, 2], [np.nan, 0, np.inf]], np.float32)
    with Runner.open(path, streams=2) as runner:
        with pytest.raises(EdgeLstmError, match="one array of all streams' frames: found no stream"):
            runner.step_all(bad)
        a, b = runner.stream("a"), runner.stream("b")
        for wrong, message in (
            (bad[0], r"found float32\[3\]; expected a NumPy array float32\[2, 3\]"),
            (bad[:1], r"found float32\[1, 3\]"),
            (bad.astype(np.float64), r"found float64\[2, 3\].*Convert it"),
            ((bad, bad), "found 2 arrays"),
            (bad.tolist(), "found 2 arrays"),
            (bad, "NaN or infinity in those of b"),
        ):
            with pytest.raises(EdgeLstmError, match=message):
                runner.step_all(wrong)
        assert (a.frames, b.frames) == (0, 0)
        y = runner.step_all(np.ones((2, 3), np.float32), copy=False)["y"]
        assert (y.shape, y.flags.writeable) == ((2, *runner.signature.outputs[0].frame_shape), False)
        kept = runner.step_all(np.ones((2, 3), np.float32))["y"]
        assert kept.flags.writeable
        assert (a.frames, b.frames) == (2, 2)
    with Runner.open(path, streams=2, on_bad_frame="skip") as runner:
        runner.stream("a"), runner.stream("b")
        with pytest.raises(EdgeLstmError, match="frames come by name"):
            runner.step_all(bad)
    with Runner.open(path, streams=2, on_bad_frame="zero") as runner, Runner.open(path) as other:
        runner.stream("a"), runner.stream("b")
        expected = other.stream("b").step(np.array([0, 0, 0], np.float32))["y"]
        np.testing.assert_allclose(runner.step_all(bad)["y"][1], expected, rtol=1e-6)
    with Runner.open(path, streams=2) as runner:
        runner.close()
        with pytest.raises(EdgeLstmError, match="this runner is closed"):
            runner.step_all(bad)
