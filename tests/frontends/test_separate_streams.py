"""Streams never see each other, whatever door a model came through: one stream a call, or refused with the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_zoo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
from edgelstm import EdgeLstmError
from edgelstm.frontends.torch.trace import trace
from edgelstm.passes.stream_axis import find_mixing
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.verify.streams import check_separate, find_leak, separate
from stepping import from_text

torch = pytest.importorskip("torch")
nn: Any = torch.nn


class Cell(nn.Module):  # type: ignore[misc]
    """A GRU cell behind something that may mix the rows of a frame [N, 4]."""

    def __init__(self, before: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.cell = before, nn.GRUCell(4, 8)

    def forward(self, x: Any, h: Any) -> Any:
        h = self.cell(self.before(x), h)
        return h * 2, h


class Largest(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x / x.abs().max().clamp(min=1e-3)


class Share(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return torch.softmax(x, 0)


class Centred(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x - x.mean(1, keepdim=True)


def beside(path: Path, streams: int) -> np.ndarray:
    """What stream a gives, alone or beside others with other data, some of them NaN, and one that idles."""
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("f4")
    with edgelstm.Runner.open(path, streams=streams, threads=1, on_bad_frame="pass") as runner:
        for name in "abc"[:streams]:
            runner.stream(name)
        data = {"b": 100 * x[:, ::-1].copy(), "c": np.full_like(x, np.nan)}
        rows = []
        for t, frame in enumerate(x):
            frames = {"a": frame} | {n: data[n][t] for n in "bc"[: streams - 1] if n == "b" or t % 2}
            rows.append(runner.step(frames)["a"]["y"].copy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("kind", "operator", "scripted"),
    [
        pytest.param(Largest, "ReduceMax", False, id="module"),
        pytest.param(Share, "Softmax", True, id="TorchScript"),
        pytest.param(Share, "Softmax", False, marks=pytest.mark.thorough),
        pytest.param(Largest, "ReduceMax", True, marks=pytest.mark.thorough),
    ],
)
def test_torch_modules_that_mix_the_batch_are_written_for_one_stream(
    tmp_path: Path, kind: Any, operator: str, scripted: bool
) -> None:
    module = Cell(kind()).eval()
    if scripted:
        module = torch.jit.trace(module, (torch.randn(2, 4), torch.randn(2, 8)))
    done = edgelstm.export(module, tmp_path / "m.onnx", frame=(4,), states={"h": (8,)}, limit=10, threads=1)
    assert done.step.signature.stream_axis == 1
    (note,) = [n for n in done.notes if "one stream" in n]
    assert operator in note
    alone = beside(tmp_path / "m.onnx", 1)
    for streams in (2, 3):
        np.testing.assert_array_equal(beside(tmp_path / "m.onnx", streams), alone)


def test_a_module_that_does_not_mix_takes_any_number(tmp_path: Path) -> None:
    done = edgelstm.export(
        Cell(Centred()).eval(), tmp_path / "m.onnx", frame=(4,), states=[(8,)], limit=10, threads=1
    )
    assert done.step.signature.stream_axis == "N"
    assert not done.notes


def test_batch_statistics_are_refused_where_one_row_has_none(tmp_path: Path) -> None:
    module = Cell(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.raises(EdgeLstmError, match="see each other") as caught:
        edgelstm.export(module, tmp_path / "m.onnx", frame=(4,), states=[(8,)], limit=10)
    assert "ReduceMean" in str(caught.value)
    assert "more than 1 value per channel" in str(caught.value)
    assert not list(tmp_path.iterdir())


MIXED = """largest = ReduceMax <keepdims = 1> (x) scaled = Div (x, largest)
    h_out = Add (scaled, h_in) y = Tanh (h_out)"""


@pytest.mark.parametrize("batch", ["batch", 1])
def test_onnx_files(tmp_path: Path, batch: object) -> None:
    shape = f"float[{batch}, 4]"
    (tmp_path / "f.onnx").write_bytes(
        onnx_zoo.text(f"{shape} x, {shape} h_in", f"{shape} y, {shape} h_out", MIXED)
    )
    done = edgelstm.export(
        tmp_path / "f.onnx", tmp_path / "m.onnx", states={"h_in": "h_out"}, limit=10, threads=1
    )
    assert done.step.signature.stream_axis == 1
    assert any("ReduceMax" in n for n in done.notes) == (batch == "batch")
    np.testing.assert_array_equal(beside(tmp_path / "m.onnx", 2), beside(tmp_path / "m.onnx", 1))


def test_a_fixed_batch_is_one_stream_with_all_its_rows(tmp_path: Path) -> None:
    """Its rows may mix, for they are one stream's."""
    (tmp_path / "f.onnx").write_bytes(
        onnx_zoo.text("float[2, 4] x, float[2, 4] h_in", "float[2, 4] y, float[2, 4] h_out", MIXED)
    )
    done = edgelstm.export(tmp_path / "f.onnx", None, states={"h_in": "h_out"}, limit=10, threads=1)
    assert done.step.signature.inputs[0].shape == (1, 2, 4)
    assert any("x, h_in got one" in note for note in done.notes)


TWO_ROWS = "g (float[2, 4] x, float[2, 4] h_in) => (float[2, 4] y, float[2, 4] h_out) { s = Add (x, h_in) h_out = Tanh (s) y = Neg (h_out) }"


def test_a_step_graph_of_ours_with_two_rows_is_exported_and_compared(tmp_path: Path) -> None:
    """It takes two streams in every call, which have nothing to do with each other."""
    path, again, window = (tmp_path / f"{name}.onnx" for name in ("m", "again", "window"))
    from_text(TWO_ROWS, h_in="h_out").save(path)
    done = edgelstm.export(str(path), again, limit=10, threads=1)
    assert done.step.signature.inputs[0].shape == (2, 4)
    assert done.proof is not None
    edgelstm.export(str(path), window, window=3, limit=10, threads=1)
    np.testing.assert_array_equal(both_rows(again), both_rows(path))
    assert edgelstm.verify(str(path), str(again), limit=10).worst.worst == 0
    with pytest.raises(EdgeLstmError, match="2 streams side by side"):
        edgelstm.Runner.open(path)


def both_rows(path: Path) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(5, 2, 4)).astype("f4")
    with edgelstm.Runner.open(path, streams=2, threads=1) as runner:
        streams = [runner.stream(name) for name in "ab"]
        return np.stack([[s.step(f)["y"].copy() for s, f in zip(streams, both, strict=True)] for both in x])


def test_a_graph_for_two_rows_that_mix_is_refused() -> None:
    step = from_text(
        f"g (float[2, 4] x, float[2, 4] h_in) => (float[2, 4] y, float[2, 4] h_out) {{ {MIXED} }}",
        h_in="h_out",
    )
    frames = [{"x": np.ones(4, "f4")}]
    with pytest.raises(EdgeLstmError, match=r"see each other.*ReduceMax"):
        separate(step, frames, None)  # type: ignore[arg-type]


def test_random_numbers_are_not_taken_for_a_leak() -> None:
    step = from_text(
        """g (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] s_next)
        { noise = RandomNormalLike (x)  y = Add (x, noise)  s_next = Add (y, s) }""",
        s="s_next",
    )
    frames = [{"x": np.ones(2, "f4")}]
    with pytest.raises(EdgeLstmError, match="other results for the same frames"):
        find_leak(step, frames)
    assert separate(step, frames, None) == (step, ())  # type: ignore[arg-type]


def test_a_pass_that_would_mix_is_caught() -> None:
    step = from_text(
        """g (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] s_next)
        { codes, scale, zero = DynamicQuantizeLinear (x)  y = DequantizeLinear (codes, scale, zero)  s_next = Add (y, s) }""",
        s="s_next",
    )
    with pytest.raises(EdgeLstmError, match="DynamicQuantizeLinear"):
        check_separate(step, ())


PLANTED: dict[str, tuple[Any, str | None]] = {
    "sorted": (lambda x: x.sort(0)[0], "TopK"),
    "normalised over the batch": (lambda x: nn.functional.normalize(x, dim=0), "ReduceL2"),
    "next row": (lambda x: x.roll(1, 0), "Slice"),
    "first row": (lambda x: x + x[:1], "Slice"),
    "gram": (lambda x: (x @ x.T) @ x, "MatMul"),
    "spread": (lambda x: x / (x.std() + 1e-3), "ReduceMean"),
    "a millionth of the sum": (lambda x: x + 1e-6 * x.sum(0, keepdim=True), "ReduceSum"),
    "so far": (lambda x: x.cumsum(0), "CumSum"),
    "the batch as channels": (
        lambda x: nn.functional.group_norm(x.t()[None], 1)[0].t(),
        "InstanceNormalization",
    ),
    "rows cut in two": (lambda x: torch.softmax(x.reshape(-1, 2), -1).reshape(x.shape), None),
    "channels as batch": (lambda x: torch.softmax(x.t(), 0).t(), None),
    "every row by itself": (lambda x: x / x.abs().amax(1, keepdim=True), None),
}


class Planted(nn.Module):  # type: ignore[misc]
    """The least that has a state, so that little but what is planted has to be exported."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Any, h: Any) -> Any:
        h = PLANTED[self.kind][0](x) + h
        return h * 2, h


#: What stands for the rest where a change waits for the tests.
SHORT = ("sorted", "next row", "a millionth of the sum", "the batch as channels", "rows cut in two", "every row by itself")  # fmt: skip


@pytest.mark.parametrize(
    "kind", [k if k in SHORT else pytest.param(k, marks=pytest.mark.thorough) for k in sorted(PLANTED)]
)
def test_what_a_traced_module_does_to_its_batch_is_named(kind: str) -> None:
    step = trace(Planted(kind).eval(), (4,), states=[(4,)])
    found = find_mixing(step)
    assert (None if found is None else found.node.op_type) == PLANTED[kind][1]
    frames = [{"x": np.random.default_rng(k).normal(size=4).astype("f4")} for k in range(4)]
    assert (find_leak(step, frames) is None) == (found is None), "running it says the same"


class Window(nn.Module):  # type: ignore[misc]
    """An LSTM over frames [N, T, 4] that are divided by the largest value of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.lstm(x / x.abs().max())[0]


def test_a_window_that_mixes_the_batch_is_written_for_one_stream(tmp_path: Path) -> None:
    module = Window().eval()
    done = edgelstm.export(module, tmp_path / "m.onnx", frame=(4,), window=3, limit=10, threads=1)
    assert done.step.signature.stream_axis == 1
    assert any("ReduceMax" in note for note in done.notes)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("f4")
    with torch.no_grad():
        want = module(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(one_window(done.step, x), want, rtol=1e-4, atol=1e-5)


def one_window(step: Any, x: np.ndarray) -> np.ndarray:
    program = OrtProgram(step.to_bytes(), threads=1)
    got: np.ndarray = program.step([{"x": x}], program.new_state(), [0])[0]["y"].copy()
    program.close()
    return got


class AlongTheBatch(nn.Module):  # type: ignore[misc]
    """An LSTM over frames [N, T, 4] of the row before: which axis is the batch can't be told from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.lstm(x.roll(1, 0))[0]


@pytest.mark.thorough
def test_a_window_whose_batch_can_not_be_told_from_its_time_is_asked_about(tmp_path: Path) -> None:
    module = AlongTheBatch().eval()
    with pytest.raises(EdgeLstmError, match=r"see each other.*Slice.*batch_first") as caught:
        edgelstm.export(module, tmp_path / "m.onnx", frame=(4,), window=5, limit=10)
    assert not list(tmp_path.iterdir())
    assert "x[B, T, ...]" in str(caught.value)
    module.batch_first = True  # as the message says
    done = edgelstm.export(module, None, frame=(4,), window=5, limit=10, threads=1)
    assert done.step.signature.stream_axis == 1
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    with torch.no_grad():
        want = module(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(one_window(done.step, x), want, rtol=1e-4, atol=1e-5)


# -- anything that mixes, anywhere, however states are given -----------------------------------------------------------


class Op(nn.Module):  # type: ignore[misc]
    """Something done to rows [N, C] or [N, T, C]."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm1d(size, track_running_stats=False)

    def forward(self, x: Any) -> Any:
        if self.kind == "batch norm":
            return self.norm(x) if x.dim() == 2 else self.norm(x.transpose(1, 2)).transpose(1, 2)
        return OPERATIONS[self.kind][0](x)


OPERATIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "batch norm": (None, ("ReduceMean",)),
    "mean": (lambda x: x - x.mean(0, keepdim=True), ("ReduceMean",)),
    "softmax": (lambda x: x.softmax(0), ("Softmax",)),
    "largest": (lambda x: x - x.amax(0, keepdim=True), ("ReduceMax",)),
    "so far": (lambda x: x.cumsum(0), ("CumSum",)),
    "sorted": (lambda x: x.sort(0)[0], ("TopK",)),
    "next row": (lambda x: x.roll(1, 0), ("Slice",)),
    "nothing": (lambda x: x, ()),
    "its own softmax": (lambda x: x.softmax(-1), ()),
}
PLACES = ("frame", "hidden", "output")


class Anyhow(nn.Module):  # type: ignore[misc]
    def __init__(self, kind: str, place: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 5)
        self.frame, self.hidden, self.output = (
            Op(kind if p == place else "nothing", 5 if p == "output" else 4) for p in PLACES
        )

    def run(self, x: Any, h: Any, c: Any) -> Any:
        """Frames [N, T, 4]; one at a time, so that what mixes does so in each."""
        y, (h, c) = self.lstm(self.frame(x), (h, c))
        return self.output(self.head(y)), self.hidden(h[0])[None], c


class Flat(Anyhow):
    def forward(self, x: Any, h: Any, c: Any) -> Any:
        y, h, c = self.run(x[:, None], h[None], c[None])
        return y[:, 0], h[0], c[0]


class Nested(Anyhow):
    def forward(self, x: Any, state: Any) -> Any:
        y, h, c = self.run(x[:, None], state[0][None], state[1][None])
        return y[:, 0], (h[0], c[0])


class Sequence(Anyhow):
    def forward(self, x: Any, state: Any) -> Any:
        h, c = state
        ys = []
        for t in range(x.shape[1]):
            y, h, c = self.run(x[:, t : t + 1], h, c)
            ys.append(y)
        return torch.cat(ys, 1), (h, c)


class Whole(Anyhow):
    batch_first = True

    def forward(self, x: Any) -> Any:
        zeros = x.new_zeros(1, x.shape[0], 4)
        return self.run(x, zeros, zeros)[0]


SHAPES: dict[Any, Any] = {Flat: (4,), Nested: (4,), Sequence: (1, 4)}


def mixes_or_says_so(kind: str, place: str, form: Any) -> None:
    """Whatever is exported gives each stream what the module gives it alone; whatever is not names the operator."""
    module, operators = form(kind, place).eval(), OPERATIONS[kind][1]
    if form is Whole and place == "hidden":  # its last h nobody sees
        return
    mixing = bool(operators)
    options: dict[str, Any] = {"limit": 4, "threads": 1}
    if form is Whole:
        options["window"] = 3
    else:
        options["states"] = {"h": SHAPES[form], "c": SHAPES[form]}
    said = ""
    try:
        done = edgelstm.export(module, None, frame=(4,), **options)
    except EdgeLstmError as error:
        said = str(error)
    if said:
        assert mixing, said
        assert any(operator in said for operator in operators), said
        return
    assert (done.step.signature.stream_axis == 1) == mixing
    assert any(o in note for o in operators for note in done.notes) == mixing
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if form is Whole:
            np.testing.assert_allclose(
                one_window(done.step, x.numpy()), module(x[None])[0].numpy(), rtol=1e-4, atol=1e-5
            )
            return
        h = c = torch.zeros(1, 1, 4)
        program = OrtProgram(done.step.to_bytes(), threads=1)
        state = program.new_state()
        for frame in x:
            want, h, c = module.run(frame[None, None], h, c)
            got = program.step([{"x": frame.numpy()}], state, [0])[0]["y"]
            np.testing.assert_allclose(got, want[0, 0].numpy(), rtol=1e-4, atol=1e-5)
        program.close()


CASES = {
    "kind": st.sampled_from(sorted(OPERATIONS)),
    "place": st.sampled_from(PLACES),
    "form": st.sampled_from([Flat, Nested, Sequence, Whole]),
}


@given(**CASES)
@settings(max_examples=1, deadline=None)
def test_anything_that_mixes_is_named(kind: str, place: str, form: Any) -> None:
    mixes_or_says_so(kind, place, form)


@pytest.mark.thorough
@pytest.mark.parametrize("form", [Flat, Nested, Sequence, Whole])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", sorted(OPERATIONS))
def test_everything_that_mixes_is_named(kind: str, place: str, form: Any) -> None:
    mixes_or_says_so(kind, place, form)


@pytest.mark.parametrize("form", [Nested, pytest.param(Sequence, marks=pytest.mark.thorough)])
def test_batch_statistics_beside_a_nested_state_are_named(form: Any) -> None:
    mixes_or_says_so("batch norm", "frame", form)
