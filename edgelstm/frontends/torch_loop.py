"""A torch module called frame by frame the way its user would: what our own speed is measured against."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.protocol import Array, Frame
from edgelstm.signature import Signature

#: ``prepare``, ``step`` and ``outputs`` of ``edgelstm.bench.contestants.Opened``.
Loop = tuple[
    Callable[[Frame], tuple[Tensor, ...]],
    Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    Callable[[Sequence[Tensor]], Mapping[str, Array]],
]


def load_module(source: str, weights: str | None = None) -> nn.Module:
    """The torch module of a described .safetensors file, or of a factory "package.module:name" and its weights."""
    if source.endswith(".safetensors"):
        from edgelstm.frontends import nn as ours

        return ours.load(source)
    name, _, attribute = source.partition(":")
    module = getattr(importlib.import_module(name), attribute)()
    if not isinstance(module, nn.Module):
        raise EdgeLstmError(source, found=type(module).__name__, expected="a factory of a torch.nn.Module")
    if weights is not None:
        if weights.endswith(".safetensors"):
            from safetensors.torch import load_file

            module.load_state_dict(load_file(weights))
        else:
            module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return module


def torch_loop(
    module: nn.Module, signature: Signature, *, streams: int = 1, threads: int = 1, compiled: bool = False
) -> Loop:
    """The loop over ``module``, which takes ``(x, ..., *states)`` and returns ``(outputs, states)``, in the order of
    ``signature``; or over a ``torch.nn.LSTM`` as it is, with ``x`` [streams, 1, inputs].

    Frames become tensors ahead of time; only the call itself is the step. ``compiled``: after ``torch.compile``.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    module = module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    call: Any = torch.compile(module, dynamic=False) if compiled else module
    names = [t.name for t in signature.outputs]
    if isinstance(module, nn.LSTM):
        shape = (module.num_layers, streams, module.proj_size or module.hidden_size)
        state: Any = (torch.zeros(shape), torch.zeros((*shape[:2], module.hidden_size)))
        time = 1 if module.batch_first else 0

        @torch.inference_mode()
        def step(frame: tuple[Tensor, ...]) -> Sequence[Tensor]:
            nonlocal state
            y, state = call(*frame, state)
            return (y,)

        return (
            lambda frame: tuple(torch.from_numpy(x).unsqueeze(time) for x in frame.values()),
            step,
            lambda outputs: {names[0]: outputs[0].squeeze(time).numpy()},
        )

    states: tuple[Tensor, ...] = tuple(
        torch.from_numpy(np.repeat(s.initial_value()[None], streams, axis=0)) for s in signature.states
    )

    @torch.inference_mode()
    def step_module(frame: tuple[Tensor, ...]) -> Sequence[Tensor]:
        nonlocal states
        outputs, states = call(*frame, *states)
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    return (
        lambda frame: tuple(torch.from_numpy(x) for x in frame.values()),
        step_module,
        lambda outputs: {name: y.numpy() for name, y in zip(names, outputs, strict=True)},
    )
