"""A ConvLSTM step in torch operators: a convolution, then the gates. Plain, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.gates import naive as gates

if TYPE_CHECKING:
    from torch import Tensor


def step(
    variant: GateVariant,
    weight: Tensor,
    bias: Tensor,
    peepholes: Sequence[Tensor],
    x: Tensor | None,
    h: Tensor,
    c: Tensor,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(h, c) after a step; stride 1, zero padding, odd kernel.

    weight [gates * C, I + C, K, K], x's channels first; bias [gates * C]; peepholes each [C] or [C, H, W]; x [N, I, H, W] or
    None where I is 0; h and c [N, C, H, W]. A stream whose ``active`` [N] is 0 keeps h and c. The product is computed in the
    dtype of ``weight``, and the gates in float32 or float64.
    """
    import torch

    joined = h if x is None else torch.cat([x.to(h.dtype), h], 1)
    z = torch.nn.functional.conv2d(
        joined.to(weight.dtype), weight, bias.to(weight.dtype), padding=weight.shape[-1] // 2
    )
    new_h, new_c = gates.fused_gates(variant, z, c, peepholes)
    new_h = new_h.to(h.dtype)
    if active is None:
        return new_h, new_c
    lives = (active != 0).reshape(-1, 1, 1, 1)
    return torch.where(lives, new_h, h), torch.where(lives, new_c, c)
