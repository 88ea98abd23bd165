"""What is refused at the door for torch modules, and what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch_zoo as zoo  # noqa: E402

from edgelstm.errors import EdgeLstmError  # noqa: E402
from edgelstm.frontends.torch.recognise import as_step  # noqa: E402

nn = torch.nn
FORMS = (
    r"expected cell\(x, \(h, c\)\) -> \(h, c\); or forward\(x, \*states\) -> \(outputs, next states\); "
    r"or forward\(x\[B, T, \.\.\.\], state\) -> \(y, state\)"
)
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no step at all": (
        zoo.NotAStep,
        (3,),
        {},
        r"^NotAStep\.forward is not step-shaped: found called as forward\(x.*\) it returned Tensor\[.*3\]; "
        + FORMS,
    ),
    "states nobody knows": (
        zoo.Step,
        (3,),
        {},
        r"Step\.forward is not step-shaped: .*also needs 'hidden', 'memory'.*"
        r"states=\{'h': \(64,\)\} or --state h=64$",
    ),
    "states of another shape": (
        zoo.Step,
        (3,),
        {"states": ((4,), (5,))},
        r"called as forward\(x, \*states\) \(states as given\) it raised RuntimeError: .*hidden_size.*\(torch_zoo\.py:\d+\)",
    ),
    "a frame of another shape": (
        lambda: nn.LSTM(3, 4),
        (5,),
        {},
        r"^LSTM can't take a frame of shape \[5\]: found it raised RuntimeError: .*Expected 3, got 5$",
    ),
    "states a torch module does not have": (
        lambda: nn.LSTM(3, 4),
        (3,),
        {"states": ((5,), (5,))},
        r"^the states of LSTM: found \[\(5,\), \(5,\)\] as given; expected \[\(4,\), \(4,\)\]$",
    ),
    "two directions": (
        lambda: nn.LSTM(3, 4, bidirectional=True),
        (3,),
        {},
        r"^a bidirectional LSTM is no step: found a direction that runs from the last frame to the first",
    ),
    "a window": (
        zoo.Window,
        (3,),
        {},
        r"^Window is a window, not a step: found with the state carried it gives other results for two frames in one call than for one after the other",
    ),
    "time on the other axis": (
        lambda: nn.LSTM(3, 4),
        (3,),
        {"batch_first": True},
        r"^batch_first: found True; expected False, as the module has it$",
    ),
    "a shape that is none": (
        lambda: nn.LSTMCell(3, 4),
        (-3,),
        {},
        r"^the shape of frame 'x': found \(-3,\); expected positive sizes without the stream axis",
    ),
    "no frame": (lambda: nn.LSTMCell(3, 4), {}, {}, r"^no frame given: expected at least one input$"),
    "too many names": (
        lambda: nn.LSTMCell(3, 4),
        (3,),
        {"outputs": ("a", "b")},
        r"^names of the outputs of LSTMCell: found \['a', 'b'\]; expected 1 name",
    ),
    "no module": (
        lambda: "model.pt",
        (3,),
        {},
        r"^the model to export: found str; expected a torch.nn.Module$",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    make, frame, options, message = REFUSED[name]
    with pytest.raises(EdgeLstmError, match=message):
        as_step(make(), frame, **options)


def test_initial_values_reach_the_signature() -> None:
    signature = as_step(zoo.Counter(), {"x": (2,), "gain": (1,)}).signature
    assert [(s.name, s.dtype) for s in signature.states] == [("seen", "int64"), ("mean", "float32")]
    assert signature.state("seen").initial_value().tolist() == [7]
    assert signature.state("mean").initial_value().tolist() == [0.5, -1.0]
    start = np.array([0.3, -0.2], np.float32)
    learned = as_step(zoo.Learned(), (2,), states=start).signature
    np.testing.assert_array_equal(learned.states[0].initial_value(), start)


@pytest.mark.parametrize("make", [zoo.Forecaster, lambda: nn.LSTM(3, 4, 2), zoo.NestedStates])
def test_states_by_name_as_a_signature_lists_them(make: Any) -> None:
    """A Signature's states, flat and by name, fit the module they came from, however it nests or stacks them."""
    module = make()
    first = as_step(module, (3,)).signature
    renamed = {f"s_{s.name}": np.full(s.frame_shape, k, np.float32) for k, s in enumerate(first.states)}
    again = as_step(module, (3,), states=renamed).signature
    assert [(s.name, s.shape) for s in again.states] == [(f"s_{s.name}", s.shape) for s in first.states]
    for k, state in enumerate(again.states):
        assert (state.initial_value() == k).all(), "each starts from the value given for it"


def test_half_precision_weights_run_in_float32() -> None:
    module = nn.LSTMCell(3, 4).half()
    step = as_step(module, (3,))
    assert step.signature.outputs[0].dtype == "float32"
    assert next(module.parameters()).dtype == torch.float16
