"""Torch modules whose results depend on which frame of a call, or of all calls, it is: nothing that a step's graph can tell."""

from __future__ import annotations

from typing import Any

import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn = torch.nn


class Sequence(nn.Module):
    """An LSTM over a window, and what its subclasses do besides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        y, _ = self.lstm(self.before(x))
        return self.after(self.head(y))

    def before(self, x: Any) -> Any:
        return x

    def after(self, y: Any) -> Any:
        return y


class BurnIn(Sequence):
    def after(self, y: Any) -> Any:
        seen = torch.ones_like(y)
        seen[:, :5] = 0
        return y * seen


class Truncated(Sequence):
    def before(self, x: Any) -> Any:
        return x[:, :64]


class ScaledIfLong(Sequence):
    def before(self, x: Any) -> Any:
        return x / x.abs().amax((1, 2), keepdim=True) if x.shape[1] > 8 else x


class Positions(Sequence):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 256, 2))
        self.table.data[:, 50:] = 0.5

    def after(self, y: Any) -> Any:
        return y + self.table[:, : y.shape[1]]


class OwnForecasts(nn.Module):
    """Takes its own forecasts for frames after ten of them, as networks that were trained to forecast do."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 3)

    def forward(self, frames: Any, states: Any = None) -> Any:
        h, c = states if states is not None else (frames.new_zeros(len(frames), 4),) * 2
        made: list[Any] = []
        for t in range(frames.shape[1]):
            h, c = self.cell(frames[:, t] if t < 10 else made[-1], (h, c))
            made.append(self.head(h))
        return torch.stack(made, 1), (h, c)


@pytest.mark.parametrize(
    ("make", "carry", "found"),
    [
        (BurnIn, True, "6 frames in one call .*, from frame 6 on"),
        pytest.param(Truncated, True, "64 outputs for 96 frames", marks=pytest.mark.thorough),
        pytest.param(ScaledIfLong, True, "24 frames in one call", marks=pytest.mark.thorough),
        pytest.param(Positions, True, "from frame 51 on", marks=pytest.mark.thorough),
        (OwnForecasts, False, "from frame 11 on"),
    ],
)
def test_a_call_that_knows_which_frame_it_is_at_is_no_step(make: Any, carry: bool, found: str) -> None:
    with pytest.raises(EdgeLstmError, match=f"is a window, not a step: .*{found}.*window=10"):
        edgelstm.export(make().eval(), None, frame=(3,), carry_state=carry)


@pytest.mark.thorough
def test_a_plain_recurrence_of_the_same_kind_is_a_step() -> None:
    assert edgelstm.export(
        Sequence().eval(), None, frame=(3,), carry_state=True, limit=20
    ).model.signature.states


@pytest.mark.thorough
def test_one_that_amplifies_rounding_is_a_step() -> None:
    class Wild(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.RNN(3, 32, batch_first=True)
            self.rnn.weight_hh_l0.data.mul_(12)

        def forward(self, x: Any, h: Any = None) -> Any:
            return self.rnn(x, h)

    assert edgelstm.export(Wild().eval(), None, frame=(3,), limit=20).model.signature.states


def test_a_number_among_the_states_that_changes_is_refused() -> None:
    class Counts(Sequence):
        def forward(self, x: Any, state: Any = None) -> Any:
            hc, seen = state if state is not None else ((x.new_zeros(1, len(x), 4),) * 2, 0)
            y, hc = self.lstm(x, hc)
            return self.head(y) * (1.0 if seen < 250 else 0.5), (hc, seen + x.shape[1])

    with pytest.raises(
        EdgeLstmError, match=r"number of Python's that changes .*\[1\] was 1 and came back as 2"
    ):
        edgelstm.export(Counts().eval(), None, frame=(3,))


def test_a_number_among_the_states_that_stays_is_taken() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x: Any, state: Any = None) -> Any:
            h, size = state if state is not None else (x.new_zeros(len(x), 4), 4)
            h = self.cell(x, h)
            return h * size, (h, size)

    assert len(edgelstm.export(Sized().eval(), None, frame=(3,), limit=20).model.signature.states) == 1


class Indexed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Any, t: int, h: Any = None) -> Any:
        h = x.new_zeros(len(x), 4) if h is None else h
        if t > 0:
            h = self.cell(x, h)
        return h, h


class IndexedN(Indexed):
    def forward(self, x: Any, n: int, h: Any = None) -> Any:
        return super().forward(x, n, h)


@pytest.mark.parametrize(("make", "name"), [(Indexed, "t"), (IndexedN, "n")])
def test_an_index_of_the_step_is_not_taken_for_a_count(make: Any, name: str) -> None:
    with pytest.raises(EdgeLstmError, match=f"needs '{name}', a number that its results depend on"):
        edgelstm.export(make().eval(), None, frame=(3,))


def test_a_window_that_keeps_its_state_does_not_pass_as_another_form() -> None:
    """With [B, T, X] a burn-in shows; as [T, X] of one stream nn.LSTM runs as well, and all would be zeros."""

    class Keeps(BurnIn):
        state: Any = None

        def forward(self, x: Any) -> Any:
            if self.state is not None and self.state[0].shape[1] != x.shape[0]:
                self.state = None
            y, self.state = self.lstm(x, self.state)
            return self.after(self.head(y))

    with pytest.raises(EdgeLstmError, match=r"is a window, not a step: .*6 frames in one call"):
        edgelstm.export(Keeps().eval(), None, frame=(3,), carry_state=True)


def test_code_that_fixes_the_type_is_told_what_to_write() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x: Any, h: Any) -> Any:
            h = self.cell(x.double(), h)
            return h, h

    with pytest.raises(EdgeLstmError) as refused:
        edgelstm.export(Fixed().eval(), None, frame=(3,), states={"h": (4,)})
    assert "take types from the weights or the frame" in str(refused.value)
