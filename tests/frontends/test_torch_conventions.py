"""Cells in every wrapping people use: recognised, and each step equal to the source's over 20 frames and more, states paired rightly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import torch_conventions as zoo  # noqa: E402

from edgelstm.frontends.torch.program import TorchProgram  # noqa: E402
from edgelstm.frontends.torch.recognise import as_step, open_module  # noqa: E402

nn: Any = torch.nn


def noise(shape: tuple[int, ...], count: int) -> Any:
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


def streamed(step: Any, frames: Any, name: str = "x") -> list[dict[str, Any]]:
    program = TorchProgram(step)
    state = program.new_state()
    return [program.step([{name: x}], state, [0])[0] for x in frames]


@pytest.mark.parametrize("count", [20, pytest.param(50, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("wrapper", zoo.WRAPPERS)
@pytest.mark.parametrize("cell", zoo.CELLS)
def test_a_cell_in_a_wrapper(cell: str, wrapper: str, count: int) -> None:
    torch.manual_seed(0)
    inner, kind = zoo.CELLS[cell]().eval(), zoo.WRAPPERS[wrapper]
    states = {f"s{k}": shape for k, shape in enumerate(inner.shapes)} if kind.given else None
    step = as_step(kind(inner).eval(), inner.frame, states=states, carry_state=kind.carry)
    assert sorted(s.frame_shape for s in step.signature.states) == sorted(inner.shapes)
    assert step.signature.stream_axis == "N"
    frames = noise(inner.frame, count)
    got = [next(iter(outputs.values())) for outputs in streamed(step, frames)]
    carried = [torch.zeros(1, *shape) for shape in inner.shapes]
    with torch.no_grad():
        for x, y in zip(frames, got, strict=True):
            wanted, carried = inner.update(torch.from_numpy(x[None]), carried)
            np.testing.assert_allclose(y, wanted[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", zoo.KEEPERS)
def test_what_a_module_keeps(name: str) -> None:
    """Carried where that is asked for, and named with what to do where it is not; no window loses it."""
    torch.manual_seed(0)
    module = zoo.KEEPERS[name]().eval()
    for options in ({}, {"window": 10}):
        with pytest.raises(EdgeLstmError, match=r"keeps '.*from call to call.*--carry-state"):
            open_module(module, (3,), **options)
    step, (note,), _ = open_module(module, (3,), carry_state=True)
    assert "keeps from call to call, carried as states" in note
    assert (step.signature.stream_axis == 1) == (name == "one stream") == ("one stream" in note)
    frames = noise((3,), 50)
    got = [outputs["y"] for outputs in streamed(step, frames)]
    with torch.no_grad():
        wanted = [module(torch.from_numpy(x[None]))[0].numpy() for x in frames]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "LSTM policy, two layers",
        *(
            pytest.param(n, marks=pytest.mark.thorough)
            for n in ("deque filled with the first frame", "one stream")
        ),
    ],
)
def test_kept_states_are_exported(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = zoo.KEEPERS[name]().eval()
    edgelstm.export(module, tmp_path / "m.onnx", frame=(3,), carry_state=True, limit=20)
    frames = noise((3,), 20)
    with edgelstm.Runner.open(tmp_path / "m.onnx", threads=1) as runner:
        stream = runner.stream("a")
        got = [stream.step(x)["y"].copy() for x in frames]
    with torch.no_grad():
        wanted = [module(torch.from_numpy(x[None]))[0].numpy() for x in frames]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_policies_with_their_states_as_arguments() -> None:
    torch.manual_seed(0)
    step = as_step(zoo.StatesInAndOut(), (3,), states={"h_in": (2, 4), "c_in": (2, 4)})
    assert [s.frame_shape for s in step.signature.states] == [(4,)] * 4
    step = as_step(
        zoo.EpisodeStarts(), {"obs": (3,), "episode_starts": ()}, states={"h": (1, 4), "c": (1, 4)}
    )
    assert [t.name for t in step.signature.inputs] == ["obs", "episode_starts"]
    assert len(step.signature.outputs) == 2
    step = as_step(zoo.MappingIn(), {"obs": (3,)})
    assert len(step.signature.outputs) == 3
    assert [s.name for s in step.signature.states] == ["h0", "c0"]


# -- which results are the states -----------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A gate comes back too, of the state's own shape: nothing tells which of the two is the state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gate = nn.GRUCell(3, 4), nn.Linear(4, 4)

    def forward(self, x: Any, h: Any) -> Any:
        gate = torch.sigmoid(self.gate(h))
        return self.cell(x, h * gate), gate


class Change(zoo.LSTM):
    """What the cell state changed by comes back as well."""

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        after, memory = self.cell(x, (h, c))
        return after, memory, memory - c


@pytest.mark.parametrize(
    ("make", "states", "results"),
    [(Gated, ["h"], ["h", "y1"]), (Change, ["h", "c"], ["h", "c", "y2"])],
)
def test_what_can_not_be_told_is_asked(make: Any, states: list[str], results: list[str]) -> None:
    """Never guessed; and what the message proposes works."""
    torch.manual_seed(0)
    module, shapes = make().eval(), dict.fromkeys(states, (4,))
    with pytest.raises(
        EdgeLstmError, match=f"which of the {len(results)} results .*--results {','.join(results)} "
    ):
        as_step(module, (3,), states=shapes)
    step = as_step(module, (3,), states=shapes, results=results)
    assert [t.name for t in step.signature.outputs] == results[len(states) :]
    frames = noise((3,), 20)
    got = [outputs[results[-1]] for outputs in streamed(step, frames)]
    carried = [torch.zeros(1, 4) for _ in states]
    with torch.no_grad():
        for x, y in zip(frames, got, strict=True):
            *carried, wanted = module(torch.from_numpy(x[None]), *carried)
            np.testing.assert_allclose(y, wanted[0], rtol=1e-4, atol=1e-6)


# -- refused, with the true reason -----------------------------------------------------------------------------------------------


class Dropout(zoo.GRU):
    def forward(self, x: Any, h: Any) -> Any:
        y, (h,) = self.update(x, [h])
        return nn.functional.dropout(y, 0.5), h


class Noisy(zoo.GRU):
    def forward(self, x: Any) -> Any:
        return self.update(x, [torch.randn(x.shape[0], 4)])[0]


class EveryFourth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.t = nn.GRUCell(3, 4), 0

    def forward(self, x: Any, h: Any) -> Any:
        self.t += 1
        return self.cell(x, h) if self.t % 4 == 0 else h


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.history.append(x)
        return torch.stack(self.history).sum(0)


class Elsewhere(nn.Module):
    def forward(self, x: Any) -> Any:
        ELSEWHERE.append(x.mean())
        return x + len(ELSEWHERE)


ELSEWHERE: list[Any] = []


class Breaks(nn.Module):
    def forward(self, x: Any, h: Any) -> Any:
        raise KeyError("no such gate")


@pytest.mark.parametrize(
    ("make", "states", "message"),
    [
        (
            Dropout,
            {"h": (4,)},
            r"draws random numbers at every call.*bernoulli at test_torch_conventions\.py:\d+",
        ),
        (Noisy, None, r"draws random numbers at every call.*randn at test_torch_conventions\.py:\d+"),
        (
            EveryFourth,
            {"h": (4,)},
            r"keeps 't' \(an attribute\).*t decides at test_torch_conventions\.py:\d+",
        ),
        (Grows, None, r"keeps ever more in 'history'"),
        (Elsewhere, None, r"keeps 'ELSEWHERE' \(a global of test_torch_conventions\.py\)"),
        (Breaks, {"h": (4,)}, r"raised KeyError: 'no such gate' \(test_torch_conventions\.py:\d+\)"),
    ],
)
def test_the_true_reason(make: Any, states: Any, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        as_step(make(), (3,), states=states, carry_state=True)


class Peepholes(nn.Module):
    """Weights that are None until ``init_hidden`` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.w = nn.LSTMCell(3, 4), None

    def init_hidden(self, batch: int, hidden: int, shape: Any) -> Any:
        self.w = nn.Parameter(torch.full((1, hidden), 0.5))
        return (torch.zeros(batch, hidden),) * 2

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        h, c = self.cell(x, (h, c * self.w))
        return h, c


def test_init_hidden_is_called_before_the_first_frame() -> None:
    step = as_step(Peepholes(), (3,), states={"h": (4,), "c": (4,)})
    assert [s.name for s in step.signature.states] == ["h", "c"]


class ZeroedInside(zoo.ConvLSTM):
    """One frame a call, from zeros each time; the states come back all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner(self.gates)

    def forward(self, x: Any) -> Any:
        h = c = torch.zeros(x.size(0), 3, *x.shape[2:])
        h, c = self.inner(x, h, c)
        return [h], (h, c)


class Inner(nn.Module):
    def __init__(self, gates: Any) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


def test_states_zeroed_inside_for_one_frame() -> None:
    torch.manual_seed(0)
    module = ZeroedInside().eval()
    frames = noise((2, 4, 4), 12)
    got = [y["y"] for y in streamed(as_step(module, (2, 4, 4), carry_state=True), frames)]
    carried = [torch.zeros(1, 3, 4, 4)] * 2
    with torch.no_grad():
        for x, y in zip(frames, got, strict=True):
            carried = module.inner(torch.from_numpy(x[None]), *carried)
            np.testing.assert_allclose(y, carried[0][0], rtol=1e-4, atol=1e-6)


# -- TorchScript -------------------------------------------------------------------------------------------------------------


class ScriptedAttribute(nn.Module):
    """Its state in an attribute that may be None, its frames counted."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4), nn.Linear(4, 2)
        self.state = torch.jit.Attribute(None, torch.jit.annotations.Optional[torch.Tensor])
        self.count = 0

    def forward(self, x):
        self.count += 1
        state = self.state
        if state is None:
            state = torch.zeros(x.size(0), 4)
        state = self.cell(x, state)
        self.state = state
        return self.head(state) / self.count


SCRIPTS = {
    "LSTM policy, two layers": lambda: zoo.Policy(nn.LSTM, 2),
    "GRU policy": lambda: zoo.Policy(nn.GRU),
    "attributes": ScriptedAttribute,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.thorough if n == "GRU policy" else ()) for n in SCRIPTS]
)
@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_file_that_keeps_its_states(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    torch.jit.script(SCRIPTS[name]().eval()).save(tmp_path / "policy.pt")
    module = torch.jit.load(tmp_path / "policy.pt")
    with pytest.raises(EdgeLstmError, match=r"keeps '.*from call to call.*--carry-state"):
        open_module(module, (3,))
    step = as_step(module, (3,), carry_state=True)
    assert step.signature.stream_axis == "N"
    frames = noise((3,), 50)
    got = [outputs["y"] for outputs in streamed(step, frames)]
    with torch.no_grad():
        wanted = [module(torch.from_numpy(x[None]))[0].numpy() for x in frames]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_policy_is_exported(tmp_path: Any) -> None:
    torch.manual_seed(0)
    torch.jit.script(zoo.Policy().eval()).save(tmp_path / "policy.pt")
    done = edgelstm.export(
        tmp_path / "policy.pt", tmp_path / "policy.onnx", frame=(3,), carry_state=True, limit=20
    )
    assert "FusedGates_lstm" in done.step.op_types()
    module, frames = torch.jit.load(tmp_path / "policy.pt"), noise((3,), 20)
    with edgelstm.Runner.open(tmp_path / "policy.onnx", threads=1) as runner:
        stream = runner.stream("a")
        got = [stream.step(x)["y"].copy() for x in frames]
    with torch.no_grad():
        wanted = [module(torch.from_numpy(x[None]))[0].numpy() for x in frames]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
