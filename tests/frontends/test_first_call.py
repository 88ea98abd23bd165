"""Torch modules whose first call is another: streams that join, leave and are reset get what the module gives when it is called anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn = torch.nn


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.start = nn.GRUCell(3, 4), nn.Linear(3, 4)


class FrameBefore(Gru):
    def forward(self, x: Any, state: Any = None) -> Any:
        before, h = state if state is not None else (x, torch.zeros(len(x), 4))
        h = self.cell(x - before, h)
        return h, (x, h)


class Encoded(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, torch.tanh(self.start(x)) if h is None else h)
        return h, h


class Learned(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, self.start.bias.expand(x.shape[0], -1) if h is None else h)
        return h, h


class NothingAtFirst(Gru):
    def forward(self, x: Any, state: Any = None) -> Any:
        if state is None:
            return torch.zeros(x.shape[0], 4), (x, torch.zeros(x.shape[0], 4))
        h = self.cell(state[0], state[1])
        return h, (x, h)


class NeedsNone(Gru):
    """A state without a default, None at the first frame."""

    def forward(self, x: Any, hidden: Any) -> Any:
        hidden = x.new_zeros(x.shape[0], 4) if hidden is None else hidden
        h = self.cell(x, hidden)
        return h, h


class Along(Gru):
    """Over [T, B, ...]."""

    def forward(self, x: Any, h: Any = None) -> Any:
        h, ys = torch.tanh(self.start(x[0])) if h is None else h, []
        for each in x:
            h = self.cell(each, h)
            ys.append(h)
        return torch.stack(ys), h


def by_itself(module: Any, frames: np.ndarray) -> np.ndarray:
    state, found = None, []
    with torch.no_grad():
        for frame in frames:
            x = torch.from_numpy(frame[None])
            y, state = module(x[None] if isinstance(module, Along) else x, state)
            found.append(y.reshape(-1).numpy())
    return np.array(found)


@pytest.mark.parametrize(
    "make",
    [
        FrameBefore,
        NeedsNone,
        *(
            pytest.param(make, marks=pytest.mark.thorough)
            for make in (Encoded, Learned, NothingAtFirst, Along)
        ),
    ],
)
def test_every_stream_begins_as_the_module_does(make: Any, tmp_path: Path) -> None:
    module = make().eval()
    edgelstm.export(module, tmp_path / "m.onnx", frame=(3,), limit=20)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 12, 3)).astype("f4")
    with edgelstm.Runner.open(tmp_path / "m.onnx", streams=2) as runner:
        one, found = runner.stream("a"), {"a": [], "b": []}
        for k in range(12):
            if k == 4:
                runner.stream("b")
            if k == 7:
                one.reset()
            given = {"a": a[k]} | ({"b": b[k]} if k >= 4 else {})
            for name, outputs in runner.step(given).items():
                found[name].append(outputs["y"].copy())
    np.testing.assert_allclose(found["a"][:7], by_itself(module, a[:7]), atol=1e-5)
    np.testing.assert_allclose(found["a"][7:], by_itself(module, a[7:]), atol=1e-5)
    np.testing.assert_allclose(found["b"], by_itself(module, b[4:]), atol=1e-5)


def test_a_start_of_its_own_beside_what_it_keeps_is_refused() -> None:
    class Both(Gru):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1, 3))

        def forward(self, x: Any, h: Any = None) -> Any:
            self.seen = 0.9 * self.seen + x
            h = self.cell(x + self.seen, torch.ones(x.shape[0], 4) if h is None else h)
            return h, h

    with pytest.raises(EdgeLstmError, match="starts from a state of its own, and keeps others"):
        edgelstm.export(Both().eval(), None, frame=(3,), carry_state=True)


def test_code_that_asks_how_many_streams_there_are_is_written_for_one(tmp_path: Path) -> None:
    class Asks(Gru):
        def forward(self, x: Any, h: Any) -> Any:
            h = self.cell(x, h + torch.zeros(len(x), 4))
            return h, h

    module = Asks().eval()
    result = edgelstm.export(module, tmp_path / "m.onnx", frame=(3,), states={"h": (4,)}, limit=20)
    assert any("written for one stream (several take one call each)" in note for note in result.notes)
    frames = np.random.default_rng(0).normal(size=(6, 3)).astype("f4")
    state, found = torch.zeros(1, 4), []
    with edgelstm.Runner.open(tmp_path / "m.onnx", streams=2) as runner, torch.no_grad():
        runner.stream("a"), runner.stream("b")
        for frame in frames:
            y, state = module(torch.from_numpy(frame[None]), state)
            found.append(np.abs(runner.step({"a": frame, "b": -frame})["a"]["y"] - y[0].numpy()).max())
    assert max(found) < 1e-5


def test_a_method_in_camel_case_makes_what_is_missing() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.memory = nn.GRUCell(3, 4), []

        def initHidden(self, batch: int) -> None:
            self.memory = [torch.zeros(batch, 4)]

        def forward(self, x: Any, first: bool = False) -> Any:
            if first:
                self.initHidden(x.shape[0])
            self.memory[0] = self.cell(x, self.memory[0])
            return self.memory[0]

    result = edgelstm.export(Cells().eval(), None, frame=(3,), carry_state=True, limit=20)
    assert [s.name for s in result.model.signature.states] == ["memory"]


class TwoStarts(Gru):
    """States from its own method, or left out."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = start

    def init_hidden(self, batch: int) -> Any:
        return torch.full((batch, 4), self.value)

    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, x.new_zeros(x.shape[0], 4) if h is None else h)
        return h, h


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_of_two_starts_that_differ_the_one_taken_is_named(start: float, tmp_path: Path) -> None:
    exported = edgelstm.export(TwoStarts(start), tmp_path / "m.onnx", frame=(3,), limit=5)
    assert any("init_hidden() of TwoStarts" in note for note in exported.notes) == bool(start)
