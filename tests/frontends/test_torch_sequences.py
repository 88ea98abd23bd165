"""Whole networks as public PyTorch code writes them: as steps, as steps with --carry-state, as windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgelstm

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import torch_sequences as nets  # noqa: E402

from edgelstm import workflows  # noqa: E402
from edgelstm.errors import EdgeLstmError  # noqa: E402
from edgelstm.frontends.torch.program import TorchProgram  # noqa: E402
from edgelstm.frontends.torch.recognise import as_step  # noqa: E402
from edgelstm.runtime.onnxruntime import OrtProgram  # noqa: E402
from edgelstm.runtime.runner import Runner  # noqa: E402

nn = torch.nn
LSTM = ["Concat", "Gemm", "FusedGates_lstm"]
CONV = ["Concat", "Conv", "FusedGates_lstm"]


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "start":
                parameter.normal_(std=0.4)
    return module


def noise(shape: tuple[int, ...], count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def program_of(exported: workflows.Exported) -> OrtProgram:
    return OrtProgram(exported.step.to_bytes(), threads=1)


def some_of(cases: dict[str, Any]) -> list[Any]:
    """Their names; `make thorough` has those of LONG, whose like is among the others."""
    return [pytest.param(name, marks=pytest.mark.thorough if name in LONG else ()) for name in cases]


LONG = (
    "the same, time first, the last layer's state alone given back",
    "states by layer in a later argument",
    "a detector over windows",
    "a detector",
)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Any]
    frame: tuple[int, ...]
    ops: list[str] | None
    states: str
    carry: bool = False
    time: int = 1


STEPS = {
    "the copied ConvLSTM, whose state can't be given": Case(
        nets.CopiedConvLSTM, nets.FRAME, CONV * 2, "h0 c0 h1 c1"
    ),
    "the same, time first, the last layer's state alone given back": Case(
        lambda: nets.CopiedConvLSTM(batch_first=False, return_all_layers=False),
        nets.FRAME,
        CONV * 2,
        "h0 c0 h1 c1",
        time=0,
    ),
    "states by layer in a later argument": Case(
        nets.LaterArgument, nets.FRAME, CONV * 2, "h0 c0 h1 c1", time=0
    ),
    "a detector over windows": Case(
        nets.Detector, nets.FRAME, ["Conv", "Relu", *CONV * 2, "Conv"], "h0 c0 h1 c1", carry=True
    ),
    "a classifier of the last frame": Case(
        nets.Classifier, nets.VECTOR, [*LSTM * 2, "Gemm"], "h0 c0 h1 c1", carry=True
    ),
    "two recurrences": Case(nets.TwoRecurrences, nets.VECTOR, None, "h0 h1 c1", carry=True, time=0),
}


@pytest.mark.parametrize("name", some_of(STEPS))
def test_a_network_becomes_a_step(name: str) -> None:
    """Streamed one by one, the export gives what the module gives for all frames in one call."""
    case = STEPS[name]
    module = seeded(case.make)
    exported = edgelstm.export(module, frame=case.frame, carry_state=case.carry, limit=30)
    assert [s.name for s in exported.step.signature.states] == case.states.split()
    if case.ops is not None:
        assert exported.step.op_types() == case.ops
    else:
        assert any(op.startswith("FusedGates") for op in exported.step.op_types())
    if case.carry:
        assert "starts anew at every call" in exported.notes[0]
    frames = noise(case.frame, 12, seed=1)
    with torch.no_grad():
        whole = module(torch.from_numpy(frames).unsqueeze(1 - case.time))
    while isinstance(whole, tuple | list):
        whole = whole[0]
    with Runner(program_of(exported)) as runner:
        stream = runner.stream("only")
        outputs = [next(iter(stream.step(x).values())).copy() for x in frames]
    if name == "a classifier of the last frame":
        np.testing.assert_allclose(outputs[-1], whole.numpy()[0], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(outputs, whole.squeeze(1 - case.time).numpy(), rtol=1e-4, atol=1e-5)


def test_a_learned_start_is_kept() -> None:
    module = seeded(nets.LearnedStart)
    step = as_step(module, nets.VECTOR, carry_state=True)
    np.testing.assert_array_equal(step.signature.state("h0").initial_value(), module.start.detach())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**16))
def test_carried_in_any_portions(portions: list[int], seed: int) -> None:
    """However a sequence is cut, frames one by one with the state carried give what the module gives for all of it."""
    module = seeded(nets.Classifier)
    program = TorchProgram(as_step(module, nets.VECTOR, carry_state=True))
    frames = noise(nets.VECTOR, sum(portions), seed)
    state, done = program.new_state(), 0
    for portion in portions:
        for x in frames[done : done + portion]:
            (outputs,) = program.step([{"x": x}], state, [0])
        done += portion
        with torch.no_grad():
            whole = module(torch.from_numpy(frames[None, :done]))
        np.testing.assert_allclose(outputs["y"], whole[0], rtol=1e-4, atol=1e-5)


def test_a_sequence_that_keeps_more_than_the_state_it_takes_is_carried() -> None:
    """Two frames in one call are what they are one by one only where what it keeps goes on between them."""
    module = seeded(nets.QuasiRecurrent)
    with pytest.raises(EdgeLstmError, match="keeps 'before'"):
        as_step(module, nets.VECTOR)
    program = TorchProgram(as_step(module, nets.VECTOR, carry_state=True))
    frames, state = noise(nets.VECTOR, 60), program.new_state()
    outputs = [program.step([{"x": x}], state, [0])[0]["y"].copy() for x in frames]
    module.before = None
    with torch.no_grad():
        whole, _ = module(torch.from_numpy(frames[None]))
    np.testing.assert_allclose(outputs, whole[0], rtol=1e-4, atol=1e-5)


# -- windows ------------------------------------------------------------------------------------------------------

WINDOWS: dict[str, tuple[Callable[[], Any], tuple[int, ...], int | None]] = {
    "a detector": (nets.Detector, nets.FRAME, 4),
    "two directions, time first": (lambda: nn.LSTM(3, 4, bidirectional=True), nets.VECTOR, 4),
    "all time steps flattened": (nets.Flattens, nets.VECTOR, None),
}


@pytest.mark.parametrize("name", some_of(WINDOWS))
def test_a_network_stays_a_window(name: str) -> None:
    make, frame, window = WINDOWS[name]
    module = seeded(make)
    exported = edgelstm.export(module, frame=frame, window=4, limit=4)
    signature = exported.step.signature
    assert signature.states == ()
    assert signature.window == window
    assert signature.inputs[0].shape == ("N", 4, *frame)
    assert "exported as windows of 4 frames, nothing is carried between them" in exported.notes[0]
    assert ("a whole window counts as one frame" in exported.notes[0]) == (window is None)
    frames = noise((4, *frame), 3, seed=2)
    time = 0 if "time first" in name else 1
    with torch.no_grad():
        whole = module(torch.from_numpy(frames).transpose(0, 1 - time))
    whole = whole[0] if isinstance(whole, tuple) else whole
    program = OrtProgram(exported.step.to_bytes(), streams=3, threads=1)
    outputs = program.step([{"x": x} for x in frames], program.new_state(), [0, 1, 2])
    for got, wanted in zip(outputs, whole.transpose(0, 1 - time).numpy(), strict=True):
        np.testing.assert_allclose(got["y"], wanted, rtol=1e-4, atol=1e-5)


def test_a_window_with_carried_state_is_unrolled() -> None:
    exported = edgelstm.export(
        seeded(nets.Classifier), frame=nets.VECTOR, window=3, carry_state=True, limit=6
    )
    assert exported.step.signature.window == 3
    assert len(exported.step.signature.states) == 4


# -- what has to be said first --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "frame", "options", "message"),
    [
        (
            nets.Detector,
            nets.FRAME,
            {},
            r"^Detector is a window: it starts anew at every call: found states inside \(convlstm\.cell_list\.0, "
            r"convlstm\.cell_list\.1\).*--window 10.*--carry-state",
        ),
        (
            nets.Flattens,
            nets.VECTOR,
            {},
            r"Flattens\.forward is not step-shaped.*It takes nothing but frames.*--window 4",
        ),
        (
            nets.Inline,
            nets.VECTOR,
            {"carry_state": True},
            r"Inline\.forward is not step-shaped.*no state was found that it keeps or that cells inside it hold",
        ),
        (nets.Flattens, nets.VECTOR, {"window": 5}, r"Flattens\.forward is not step-shaped"),
    ],
)
def test_what_is_wanted_is_asked_for(make: Any, frame: Any, options: Any, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        edgelstm.export(make(), frame=frame, **options)
