"""Any recurrent torch module, seen as one step: frames and states in, outputs and next states out.

Three forms are known:

    cell      cell(x, (h, c)) -> (h, c)                  also cell(x, h) -> h, as torch.nn.GRUCell
    step      module(x, *states) -> (outputs, next states)
    sequence  module(x[B, T, ...], state) -> (y, state)  such as torch.nn.LSTM, run with T = 1

Which one a module has is found by running it, with two different numbers of streams: the axis that follows the number is
the stream axis. Nothing is read from source code, and nothing counts that the run does not bear out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.shapes import read_frames
from edgelstm.frontends.weights import import_torch

if TYPE_CHECKING:
    from torch import nn

    from edgelstm.frontends.forms import TorchStep


def as_step(
    module: nn.Module,
    frame: Any,
    *,
    states: Any = None,
    batch_first: bool | None = None,
    outputs: Sequence[str] | None = None,
    carry_state: bool = False,
) -> TorchStep:
    """A copy of ``module`` (evaluation mode, float32, CPU) as one step; ``module`` itself is left as it is.

    Parameters
    ----------
    frame: one frame without the stream axis: its shape (float32), or an example array, whose dtype counts; or a
        mapping of those by input name, in the order of forward's arguments. A lone frame is called ``x``.
    states: one stream's states, without the stream axis: shapes (they start at zero) or arrays (the initial values),
        nested as the module nests them, or a flat mapping by name. Needed where the module itself does not tell:
        by ``initial_states(streams)``, by a state that may be left out, or by an attribute such as ``hidden_size``.
    batch_first: whether a sequence module takes [B, T, ...] or [T, B, ...]; found by running it when None.
    carry_state: for a module that starts from zeros at every call: carry the states of the cells inside it all the same.
        Without it that is done only where the module gives those states back.
    outputs: names of the outputs; else the module's ``output_names``, its dictionary's keys, or ``y`` (``y0, y1, ...``).

    Returns a :class:`~edgelstm.frontends.forms.TorchStep` with a Signature: stream axis ``N``, states ``h0, c0, h1, ...``
    each with the streams on axis 0, also where the module stacks its layers as [layers, N, ...].

    Raises EdgeLstmError for a module that is not step-shaped, saying what forward gave and what is expected; for a
    bidirectional or otherwise windowed module; and when torch is missing.
    """
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise EdgeLstmError("the model to export", found=type(module).__name__, expected="a torch.nn.Module")
    from edgelstm.frontends.probe import probe

    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # whatever a user's module raises
        raise EdgeLstmError(f"{type(module).__name__} can't be copied", found=str(error)) from error
    copied = copied.to(device="cpu").float().eval().requires_grad_(False)
    return probe(copied, read_frames(frame), states, batch_first, outputs, carry_state)
