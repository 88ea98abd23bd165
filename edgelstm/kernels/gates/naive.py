"""FusedGates in torch operators: what the op computes on the CPU, and what its gradient is taken of.

The same equations as ``GateVariant.reference``, which a test compares it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgelstm.graph.gates import GateVariant

if TYPE_CHECKING:
    from torch import Tensor


def fused_gates(
    variant: GateVariant, z: Tensor, c: Tensor, peepholes: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(h, c_out) in ``z``'s and ``c``'s dtype; arithmetic in float32, or float64 where either is.

    z [N, gates * C, *S], c [N, C, *S], peepholes broadcastable to [C, *S] or [C].
    """
    import torch

    kind = torch.float64 if torch.float64 in (z.dtype, c.dtype) else torch.float32
    parts = dict(zip(variant.gates, z.to(kind).chunk(len(variant.gates), 1), strict=True))
    names = [name for name in variant.inputs if name.startswith("p_")]
    spread = c.shape[1:]
    p = {
        name: (w.reshape(-1, *[1] * (len(spread) - 1)) if w.ndim == 1 else w).to(kind)
        for name, w in zip(names, peepholes, strict=True)
    }

    def gate(x: Tensor) -> Tensor:
        if variant.gate == "sigmoid":
            y: Tensor = x.sigmoid()
            return y
        # The kernel and ONNX keep the two numbers in float32.
        alpha, beta = torch.tensor([variant.alpha, variant.beta], dtype=torch.float32).tolist()
        y = (alpha * x + beta).clamp(0, 1)
        return y

    activate = {"tanh": torch.tanh, "relu": torch.relu}
    old = c.to(kind)
    i = gate(parts["i"] + p["p_i"] * old if variant.peephole else parts["i"])
    f = 1 - i if variant.coupled else gate(parts["f"] + p["p_f"] * old if variant.peephole else parts["f"])
    new = f * old + i * activate[variant.candidate](parts["g"])
    if variant.cell_clip is not None:
        new = new.clamp(-variant.cell_clip, variant.cell_clip)
    o = gate(parts["o"] + p["p_o"] * new if variant.peephole else parts["o"])
    return (o * activate[variant.output](new)).to(z.dtype), new.to(c.dtype)
