"""A torch module called frame by frame the way its user would: what our own speed is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgelstm.frontends.torch.nn import StepModule, load
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array, Frame

#: ``prepare``, ``step`` and ``outputs`` of ``edgelstm.bench.contestants.Opened``.
Loop = tuple[
    Callable[[Frame], tuple[Tensor, ...]],
    Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    Callable[[Sequence[Tensor]], Mapping[str, Array]],
]


def load_module(source: str, weights: str | None = None) -> nn.Module:
    """The torch module of a described .safetensors file, or of a factory "package.module:name" and its weights."""
    if source.endswith(".safetensors"):
        return load(source)
    from edgelstm.frontends.torch.factory import load_weights, resolve

    module = resolve(source)
    return module if weights is None else load_weights(module, weights)


def torch_loop(
    module: nn.Module, signature: Signature, *, streams: int = 1, threads: int = 1, compiled: bool = False
) -> Loop:
    """The loop over ``module`` whose frames and outputs ``signature`` names; ``compiled``: after ``torch.compile``.

    torch.nn.LSTM and our own modules are called as they are, others through what ``as_step`` makes of them. Frames
    become tensors ahead of time; only the call itself is the step.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    module.eval().requires_grad_(False)
    if isinstance(module, nn.LSTM):
        return _sequence(module, signature, streams, compiled)
    names = [t.name for t in signature.outputs]
    if not isinstance(module, StepModule):
        from edgelstm.frontends.torch.recognise import as_step

        step = as_step(module, {t.name: np.zeros(t.frame_shape, t.dtype) for t in signature.inputs})
        module, signature = step, step.signature
        own = [t.name for t in signature.outputs]
        # A module that doesn't name its outputs has names made up, in the order of the graph's.
        names = own if set(own) == set(names) else names
    call: Any = torch.compile(module, dynamic=False) if compiled else module
    states: tuple[Tensor, ...] = tuple(
        torch.from_numpy(np.repeat(s.initial_value()[None], streams, axis=0)) for s in signature.states
    )

    @torch.inference_mode()
    def step_once(frame: tuple[Tensor, ...]) -> Sequence[Tensor]:
        nonlocal states
        outputs, states = call(*frame, *states)
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    return (
        lambda frame: tuple(torch.from_numpy(x) for x in frame.values()),
        step_once,
        lambda outputs: {name: y.numpy() for name, y in zip(names, outputs, strict=True)},
    )


def _sequence(module: nn.LSTM, signature: Signature, streams: int, compiled: bool) -> Loop:
    """torch.nn.LSTM on sequences of one frame, its state as it gives it back."""
    call: Any = torch.compile(module, dynamic=False) if compiled else module
    layers, hidden = module.num_layers, module.hidden_size
    state = (torch.zeros(layers, streams, module.proj_size or hidden), torch.zeros(layers, streams, hidden))
    time = 1 if module.batch_first else 0
    name = signature.outputs[0].name

    @torch.inference_mode()
    def step(frame: tuple[Tensor, ...]) -> Sequence[Tensor]:
        nonlocal state
        y, state = call(*frame, state)
        return (y,)

    return (
        lambda frame: tuple(torch.from_numpy(x).unsqueeze(time) for x in frame.values()),
        step,
        lambda outputs: {name: outputs[0].squeeze(time).numpy()},
    )
