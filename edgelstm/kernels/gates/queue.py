"""What is checked and queued once arrays are on a GPU, whoever calls: ``fused_gates`` and torch's operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.arrays import View, contiguous_strides, view
from edgelstm.kernels.gates import launch as gates
from edgelstm.kernels.launch import kernel

NO_OLD, NO_OLD_HINT = "active without h_old", "Idle streams keep the h they had: give it"
_TYPES = {"float32": gates.FLOAT, "float16": gates.HALF, "bfloat16": gates.BF16}


def run(
    variant: GateVariant,
    stream: int,
    z: Any,
    c: Any,
    peepholes: Sequence[Any],
    h: Any,
    c_out: Any,
    active: Any = None,
    h_old: Any = None,
) -> None:
    """Queue the kernel. Every array is on one GPU; see :func:`fused_gates`."""
    names = peephole_names(variant, peepholes)
    given = {"z": z, "c": c, "h": h, "c_out": c_out, **dict(zip(names, peepholes, strict=True))}
    if active is not None:
        if h_old is None:
            raise EdgeLstmError(NO_OLD, hint=NO_OLD_HINT)
        given |= {"active": active, "h_old": h_old}
    views = {name: view(name, value, stream) for name, value in given.items()}
    params = parameters(variant, views)
    if params.streams == 0:
        return
    plan = gates.plan_of(params)
    found = kernel(views["z"].device, gates.SOURCE, gates.NAME, gates.defines(plan))
    found.launch(plan.blocks, gates.THREADS, plan, stream)


def peephole_names(variant: GateVariant, peepholes: Sequence[Any]) -> list[str]:
    """Which peepholes those are, in order. Raises EdgeLstmError if there are too few or too many."""
    names = [name for name in variant.inputs[2:] if name.startswith("p_")]
    if len(peepholes) != len(names):
        raise EdgeLstmError(f"{variant.op_type}: peepholes", found=len(peepholes), expected=names or "none")
    return names


def parameters(variant: GateVariant, views: dict[str, View]) -> gates.Params:
    """What the kernel is given. Raises EdgeLstmError where shapes, types, layouts or devices don't fit."""
    z, c = views["z"], views["c"]
    count = len(variant.gates)
    if len(c.shape) < 2 or z.shape != (c.shape[0], count * c.shape[1], *c.shape[2:]) or 0 in c.shape[1:]:
        raise EdgeLstmError(
            f"{variant.op_type}: shapes of z and c",
            found=f"{list(z.shape)} and {list(c.shape)}",
            expected=f"[N, {count}C, ...] and [N, C, ...]",
        )
    streams, channels, spatial = c.shape[0], c.shape[1], math.prod(c.shape[2:])
    for name, v in views.items():
        if v.device != z.device:
            raise EdgeLstmError(f"{name} on another GPU than z", found=v.device, expected=z.device)
    for name in {"h", "c_out", "h_old"} & set(views):
        if views[name].shape != c.shape:
            raise EdgeLstmError(f"shape of {name}", found=list(views[name].shape), expected=list(c.shape))
    h = views["h"]
    forms = gates.Forms(
        gates.Form(_type("z", z), _layout("z", z)),
        gates.Form(_type("c", c, ("float32", "float16")), _linear("c", c)),
        gates.Form(_type("h", h), _layout("h", h)),
    )
    _same("c_out", views["c_out"], c)
    params = gates.Params(gates.variant_of(variant), forms, 0.0, streams, channels, spatial)
    params.z, params.c, params.h, params.c_out = z.pointer, c.pointer, h.pointer, views["c_out"].pointer
    for name in [name for name in views if name.startswith("p_")]:
        setattr(params, name, _peephole(name, views[name], c))
    if "active" in views:
        active, old = views["active"], views["h_old"]
        if active.shape != (streams,) or active.dtype != "int32" or not active.contiguous:
            found = f"{active.dtype}{list(active.shape)}"
            raise EdgeLstmError("active", found=found, expected=f"int32[{streams}], contiguous")
        _same("h_old", old, h)
        params.active, params.h_old = active.pointer, old.pointer
    _apart(views)
    return params


def _type(name: str, v: View, allowed: Sequence[str] = tuple(_TYPES)) -> int:
    if v.dtype not in allowed:
        raise EdgeLstmError(f"dtype of {name}", found=v.dtype, expected=" or ".join(allowed))
    return _TYPES[v.dtype]


def _layout(name: str, v: View) -> int:
    if v.contiguous:
        return gates.LINEAR
    channels, places = v.shape[1], v.shape[2:]
    last = (
        channels * math.prod(places),
        1,
        *(channels * stride for stride in contiguous_strides(places)),
    )
    if v.lies_as(last) and v.dtype != "float32" and channels % 8 == 0:
        return gates.HWC8
    raise EdgeLstmError(
        f"{name} lies in another way than the kernel takes",
        found=f"{v.dtype}{list(v.shape)} with strides {list(v.strides)}",
        expected="contiguous, or 16-bit and channels last with a multiple of 8 channels",
        hint="Make it so first: tensor.contiguous()",
    )


def _linear(name: str, v: View) -> int:
    if not v.contiguous:
        raise EdgeLstmError(f"{name} is not contiguous", found=f"strides {list(v.strides)}")
    return gates.LINEAR


def _same(name: str, v: View, like: View) -> None:
    if v.dtype != like.dtype or not v.lies_as(like.strides):
        raise EdgeLstmError(
            f"{name} differs from the tensor it follows",
            found=f"{v.dtype}, strides {list(v.strides)}",
            expected=f"{like.dtype}, strides {list(like.strides)}",
        )


def _peephole(name: str, v: View, c: View) -> gates.Peephole:
    maps = v.shape == c.shape[1:]
    if not (maps or v.shape == c.shape[1:2]) or v.dtype != c.dtype or not v.contiguous:
        raise EdgeLstmError(
            name,
            found=f"{v.dtype}{list(v.shape)}, strides {list(v.strides)}",
            expected=f"{c.dtype}, [{c.shape[1]}] or {list(c.shape[1:])}, contiguous",
        )
    return gates.Peephole(v.pointer, maps and len(c.shape) > 2)


def _apart(views: dict[str, View]) -> None:
    """Outputs overlap nothing but the tensor they may replace, which they then are."""
    spans = {name: (v.pointer, v.pointer + math.prod(v.shape) * _width(v)) for name, v in views.items()}
    for out, replaces in (("h", "h_old"), ("c_out", "c")):
        begin, end = spans[out]
        for name, span in spans.items():
            if name == out or (name == replaces and span == spans[out]):
                continue
            if begin < span[1] and span[0] < end:
                raise EdgeLstmError(
                    f"{out} overlaps {name}", expected=f"memory of its own, or {replaces} itself"
                )


def _width(v: View) -> int:
    return 4 if v.dtype in ("float32", "int32") else 2


def new_tensors(z: Any, c: Any) -> tuple[Any, Any]:
    """h and c_out for torch; h lies as z does."""
    import torch

    channels = c.shape[1]
    if z.is_contiguous() or channels % 8:
        return torch.empty(c.shape, dtype=z.dtype, device=z.device), torch.empty_like(c)
    last = torch.empty((c.shape[0], *c.shape[2:], channels), dtype=z.dtype, device=z.device)
    return last.movedim(-1, 1), torch.empty_like(c)
