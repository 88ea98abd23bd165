"""FusedGates as operators of torch: ``torch.ops.edgelstm.fused_gates``, and ``fused_gates_``, which works in place.

Both run the kernel on CUDA tensors and torch's own operators on the CPU, trace under ``torch.compile`` and ``torch.export``, and may
be captured into a CUDA graph after one run outside. The first has a gradient, computed by torch's operators.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.gates import naive

if TYPE_CHECKING:
    from torch import Tensor

# Peepholes one by one: with a list among the arguments torch loses count of a gradient's defaults.
_ARGUMENTS = (
    "Tensor? p_i=None, Tensor? p_f=None, Tensor? p_o=None, str variant='FusedGates_lstm', Tensor? active=None"
)


@functools.cache
def register_torch() -> Any:
    """Define the operators, once, and return ``torch.ops.edgelstm``.

    fused_gates(z, c, p_i=None, p_f=None, p_o=None, variant="FusedGates_lstm", active=None, h_old=None) -> (h, c_out)
    fused_gates_(z, c, h, p_i=None, p_f=None, p_o=None, variant="FusedGates_lstm", active=None): c and h are replaced.

    ``variant`` is a ``GateVariant.op_type``; tensors as :func:`edgelstm.kernels.fused_gates` takes them. Without contiguity a
    tensor is copied first. Raises EdgeLstmError where torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise EdgeLstmError("torch is not installed", hint="pip install 'edgelstm[torch]'") from error
    library = torch.library
    schema = f"(Tensor z, Tensor c, {_ARGUMENTS}, Tensor? h_old=None) -> (Tensor, Tensor)"
    op = library.custom_op("edgelstm::fused_gates", _forward, mutates_args=(), schema=schema)
    op.register_fake(_fake)
    op.register_autograd(_backward, setup_context=_keep)
    schema = f"(Tensor z, Tensor(a!) c, Tensor(b!) h, {_ARGUMENTS}) -> ()"
    in_place = library.custom_op("edgelstm::fused_gates_", _in_place, mutates_args=("c", "h"), schema=schema)
    in_place.register_fake(lambda *_: None)
    return torch.ops.edgelstm


def on_host(
    z: Tensor,
    c: Tensor,
    peepholes: Sequence[Tensor],
    variant: GateVariant,
    active: Tensor | None,
    h_old: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operator by torch's own; idle streams keep h_old and c."""
    import torch

    h, c_out = naive.fused_gates(variant, z, c, peepholes)
    if active is not None:
        if h_old is None:
            from edgelstm.kernels.gates.queue import NO_OLD, NO_OLD_HINT

            raise EdgeLstmError(NO_OLD, hint=NO_OLD_HINT)
        lives = (active != 0).reshape(-1, *[1] * (c.ndim - 1))
        h, c_out = torch.where(lives, h, h_old), torch.where(lives, c_out, c)
    return h, c_out


def _forward(
    z: Tensor,
    c: Tensor,
    p_i: Tensor | None = None,
    p_f: Tensor | None = None,
    p_o: Tensor | None = None,
    variant: str = "FusedGates_lstm",
    active: Tensor | None = None,
    h_old: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    kind, peepholes = GateVariant.of(variant), _given(p_i, p_f, p_o)
    if not z.is_cuda:
        return on_host(z, c, peepholes, kind, active, h_old)
    from edgelstm.kernels.gates.queue import new_tensors

    z, c = _taken(z, c), c.contiguous()
    h, c_out = new_tensors(z, c)
    _launch(kind, z, c, peepholes, h, c_out, active, _as(h, h_old))
    return h, c_out


def _in_place(
    z: Tensor,
    c: Tensor,
    h: Tensor,
    p_i: Tensor | None = None,
    p_f: Tensor | None = None,
    p_o: Tensor | None = None,
    variant: str = "FusedGates_lstm",
    active: Tensor | None = None,
) -> None:
    kind, peepholes = GateVariant.of(variant), _given(p_i, p_f, p_o)
    if not z.is_cuda:
        h_new, c_new = on_host(z, c, peepholes, kind, active, h)
        h.copy_(h_new)
        c.copy_(c_new)
        return
    _launch(kind, _taken(z, c), c, peepholes, h, c, active, h)


def _launch(
    kind: GateVariant, z: Any, c: Any, peepholes: Any, h: Any, c_out: Any, active: Any, h_old: Any
) -> None:
    from edgelstm.kernels.arrays import stream_handle
    from edgelstm.kernels.gates.queue import run

    run(
        kind, stream_handle(None, z), z, c, peepholes, h, c_out, active, h_old if active is not None else None
    )


def _taken(z: Tensor, c: Tensor) -> Tensor:
    """z if the kernel takes it as it lies, else a contiguous copy."""
    channels, places = z.shape[1], z.shape[2:]
    last = z.movedim(1, -1).is_contiguous() and z.element_size() == 2 and c.shape[1] % 8 == 0
    return z if z.is_contiguous() or (last and channels and places) else z.contiguous()


def _as(h: Tensor, h_old: Tensor | None) -> Tensor | None:
    """h_old lying as h does."""
    import torch

    if h_old is None or h_old.stride() == h.stride():
        return h_old
    return torch.empty_like(h).copy_(h_old)


def _given(*peepholes: Tensor | None) -> list[Tensor]:
    return [p.contiguous() for p in peepholes if p is not None]


def _fake(z: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    import torch

    from edgelstm.kernels.gates.queue import new_tensors

    if z.device.type == "cuda":
        return new_tensors(_taken(z, c), c.contiguous())
    return torch.empty(c.shape, dtype=z.dtype, device=z.device), torch.empty_like(c)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    z, c, *peepholes, ctx.variant, active, _ = inputs
    ctx.idle = active is not None
    ctx.given = [p is not None for p in peepholes]
    ctx.save_for_backward(z, c, *_given(*peepholes))


def _backward(ctx: Any, h_gradient: Any, c_gradient: Any) -> tuple[Any, ...]:
    import torch

    if ctx.idle:
        raise EdgeLstmError("the gradient of fused_gates with idle streams", hint="Train without active=")
    with torch.enable_grad():
        z, c, *peepholes = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        results = naive.fused_gates(GateVariant.of(ctx.variant), z, c, peepholes)
        rest = iter(torch.autograd.grad(results, [z, c, *peepholes], [h_gradient, c_gradient]))
    return next(rest), next(rest), *(next(rest) if given else None for given in ctx.given), None, None, None
