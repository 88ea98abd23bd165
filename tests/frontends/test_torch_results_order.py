"""Results in another order than the states go in: exported right, or asked about with a command that works."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.onnxruntime import OrtProgram

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

nn: Any = torch.nn


class Net(nn.Module):
    """Layers of one kind; ``update(x, states)`` says which state is which, by name."""

    def __init__(self, kind: str, layers: int, sequence: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}[kind]
        self.cells = nn.ModuleList([make(3 if k == 0 else 4, 4) for k in range(layers)])
        self.head, self.kind, self.sequence = nn.Linear(4, 2), kind, sequence
        self.names = [f"{part}{k}" for k in range(layers) for part in ("hc" if kind == "lstm" else "h")]

    def update(self, x: Any, states: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        after = {}
        for k, cell in enumerate(self.cells):
            if self.kind == "lstm":
                after[f"h{k}"], after[f"c{k}"] = cell(x, (states[f"h{k}"], states[f"c{k}"]))
            else:
                after[f"h{k}"] = cell(x, states[f"h{k}"])
            x = after[f"h{k}"]
        return self.head(x), after

    def run(self, x: Any, states: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not self.sequence:
            return self.update(x, states)
        ys = []
        for t in range(x.shape[1]):
            y, states = self.update(x[:, t], states)
            ys.append(y)
        return torch.stack(ys, 1), states


class Flat(Net):
    """States one by one, given back one by one; ``given`` and ``back`` are their orders, the outputs at ``place``."""

    def __init__(
        self, kind: str, layers: int, sequence: bool, given: Sequence[int], back: Sequence[int], place: int
    ) -> None:
        super().__init__(kind, layers, sequence)
        self.given = [self.names[k] for k in given]
        self.back, self.place = [self.names[k] for k in back], place

    def results(self, y: Any, after: dict[str, Any]) -> Any:
        found = [after[name] for name in self.back]
        return (*found[: self.place], y, *found[self.place :])

    def forward(self, x: Any, *states: Any) -> Any:
        return self.results(*self.run(x, dict(zip(self.given, states, strict=True))))


class NestedIn(Flat):
    """States in one tuple, given back one by one."""

    def forward(self, x: Any, states: Any) -> Any:
        return self.results(*self.run(x, dict(zip(self.given, states, strict=True))))


class Pair(Flat):
    """States in one tuple and back in one: a step takes what it gave, whatever that holds."""

    def forward(self, x: Any, states: Any) -> Any:
        y, after = self.run(x, dict(zip(self.given, states, strict=True)))
        return y, tuple(after[name] for name in self.back)


def right_or_asked(module: Any) -> str:
    """How it went: exported, or asked; whatever the module says its states are called is what they are in the end."""
    module.eval()
    options: dict[str, Any] = {
        "frame": (3,),
        "states": dict.fromkeys(module.given, (4,)),
        "limit": 5,
        "threads": 1,
    }
    how, said = "exported", ""
    try:
        done = edgelstm.export(module, None, **options)
    except EdgeLstmError as error:
        said = str(error)
    if said:
        how = "asked"
        command = re.search(r"--results (\S+)", said)
        assert command, said
        done = edgelstm.export(module, None, results=command[1].split(","), **options)
    program = OrtProgram(done.step.to_bytes(), threads=1)
    state = program.new_state()
    double = module.double()
    states = {name: torch.zeros(1, 4, dtype=torch.float64) for name in module.names}
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("f4")
    swaps = isinstance(module, Pair) and not module.sequence
    for frame in x:
        with torch.no_grad():
            y, after = double.update(torch.from_numpy(frame)[None].double(), states)
        if swaps:  # as a call after a call has it
            after = {name: after[b] for name, b in zip(module.given, module.back, strict=True)}
        states = after
        got = program.step([{"x": frame}], state, [0])[0]
        (output,) = (v for n, v in got.items() if n not in states)
        np.testing.assert_allclose(output, y[0].numpy(), rtol=1e-4, atol=1e-5)
    program.close()
    if swaps and module.given != module.back and module.kind != "rnn":
        assert any("--results" in note for note in done.notes)
    return how


@pytest.mark.parametrize(
    "form", [Flat, *(pytest.param(f, marks=pytest.mark.thorough) for f in (NestedIn, Pair))]
)
def test_a_sequence_says_itself_which_results_are_its_states(form: Any) -> None:
    """Two frames in one call are the proof: c, h in and h, c back."""
    module = form("lstm", 1, True, (1, 0), (0, 1), 0)
    assert right_or_asked(module) == "exported"


@pytest.mark.parametrize(
    ("form", "kind", "layers", "given", "back"),
    [
        (NestedIn, "lstm", 1, (1, 0), (0, 1)),
        pytest.param(Flat, "lstm", 2, (0, 1, 2, 3), (0, 2, 1, 3), marks=pytest.mark.thorough),
        (Flat, "gru", 2, (0, 1), (1, 0)),
    ],
)
def test_a_step_is_asked_about(form: Any, kind: str, layers: int, given: Any, back: Any) -> None:
    assert right_or_asked(form(kind, layers, False, given, back, 0)) == "asked"


@pytest.mark.thorough
def test_an_order_that_is_the_states_own_is_taken() -> None:
    assert right_or_asked(Flat("lstm", 2, False, (1, 0, 3, 2), (1, 0, 3, 2), 0)) == "exported"


class Stacked(nn.Module):
    """Layers in one tensor; ``state`` is c and h, the results h and c, the outputs first or last."""

    def __init__(self, layers: int, time_first: bool, last: bool, nested: bool, optional: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(3, 4, layers, batch_first=not time_first), nn.Linear(4, 2)
        self.layers, self.axis = layers, int(not time_first)
        self.last, self.nested, self.optional = last, nested, optional

    def forward(self, x: Any, state: Any = None) -> Any:
        if state is None:
            assert self.optional
            state = (x.new_zeros(self.layers, x.shape[1 - self.axis], 4),) * 2
        c, h = state
        y, (h, c) = self.lstm(x, (h, c))
        y = self.head(y)
        if self.nested:
            return ((h, c), y) if self.last else (y, (h, c))
        return (h, c, y) if self.last else (y, h, c)


def stacked_is_right(module: Any) -> None:
    module.eval()
    shape = (module.layers, 4)
    states = None if module.optional else {"c": shape, "h": shape}
    done = edgelstm.export(module, None, frame=(3,), states=states, limit=5, threads=1)
    assert any("another order" in note for note in done.notes)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("f4")
    with torch.no_grad():
        whole = torch.from_numpy(x).double().unsqueeze(1 - module.axis)
        double = module.double()
        zeros = torch.zeros(module.layers, 1, 4, dtype=torch.float64)
        want = double.head(double.lstm(whole, (zeros, zeros))[0]).squeeze(1 - module.axis)
    program = OrtProgram(done.step.to_bytes(), threads=1)
    state = program.new_state()
    names = {s.output for s in done.step.signature.states}
    for frame, y in zip(x, want, strict=True):
        got = program.step([{"x": frame}], state, [0])[0]
        (output,) = (v for n, v in got.items() if n not in names)
        np.testing.assert_allclose(output, y.numpy(), rtol=1e-4, atol=1e-5)
    program.close()


@pytest.mark.thorough
def test_stacked_layers_of_a_sequence_in_another_order() -> None:
    stacked_is_right(Stacked(2, time_first=True, last=True, nested=False, optional=True))


@pytest.mark.thorough
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("flags", list(product([False, True], repeat=4)))
def test_stacked_layers_in_every_order(layers: int, flags: tuple[bool, ...]) -> None:
    stacked_is_right(Stacked(layers, *flags))


class DelayLine(nn.Module):
    """Two states handed on, an average, and the features of the last frame: nothing to ask about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Linear(3, 4), nn.Linear(16, 2)

    def forward(self, x: Any, first: Any, second: Any, last: Any, mean: Any) -> Any:
        now = self.features(x)
        mean = mean + 0.1 * (now - last)
        return self.head(torch.cat([first, second, last, mean], 1)), now, first, now.tanh(), mean


def test_what_is_handed_on_is_no_other_order() -> None:
    names = ("first", "second", "last", "mean")
    done = edgelstm.export(DelayLine().eval(), None, frame=(3,), states=dict.fromkeys(names, (4,)), limit=5)
    assert [s.name for s in done.step.signature.states] == list(names)


@st.composite
def modules(draw: Any) -> Any:
    kind = draw(st.sampled_from(["lstm", "gru", "rnn"]))
    layers = draw(st.integers(1, 3))
    count = layers * (2 if kind == "lstm" else 1)
    order = st.permutations(range(count))
    form, sequence = draw(st.sampled_from([Flat, NestedIn, Pair])), draw(st.booleans())
    place = 0 if form is Pair else draw(st.sampled_from([0, count]))
    return form(kind, layers, sequence, draw(order), draw(order), place)


@pytest.mark.thorough
@given(module=modules())
@settings(max_examples=40, deadline=None)
def test_any_order_is_exported_right_or_asked_about(module: Any) -> None:
    right_or_asked(module)
