"""A TorchScript module that keeps states, run node by node in plain torch: what it keeps become attributes to be looked at.

torch's exporters and our search for states see eager code only. The graph of such a module, all its methods inlined, is run
by the few lines below; that they compute what TorchScript computes is checked against the file itself, call by call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128, torch.bool,
)  # fmt: skip
_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last)
#: Operators that give a view of their first input.
_VIEWS = frozenset(
    [
        "aten::slice",
        "aten::select",
        "aten::view",
        "aten::unsqueeze",
        "aten::squeeze",
        "aten::narrow",
        "aten::t",
    ]
)
#: Operators on what are no tensors.
_PLAIN: Mapping[str, Callable[..., Any]] = {
    "__is__": operator.is_,
    "__isnot__": operator.is_not,
    "__not__": operator.not_,
    "__contains__": operator.contains,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__getitem__": operator.getitem,
    "len": len,
    "list": list,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "remainder": operator.mod,
    "neg": operator.neg,
    "append": lambda items, item: items.append(item),
    "_set_item": operator.setitem,
    "max": max,
    "min": min,
    "warn": lambda *_: None,
    "format": lambda text, *values: text.format(*values),
}
_SAME = frozenset(
    ["prim::unchecked_cast", "prim::unchecked_unwrap_optional", "aten::_unwrap_optional", "prim::data"]
)


class _Source:
    """The TorchScript module and its graph, of which there is one however often the eager one is copied."""

    def __init__(self, script: Any) -> None:
        self.script, self.graph = script, script.inlined_graph

    def __deepcopy__(self, memo: dict[int, Any]) -> _Source:
        return self


class Part(nn.Module):
    """The parameters, buffers and attributes of one module within."""


class Eager(Part):
    """``script``, run node by node."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.source_name = str(script.original_name)
        self.script_source = _Source(script)
        graph = self.script_source.graph
        modules: dict[str, tuple[Any, nn.Module]] = {next(graph.inputs()).debugName(): (script, self)}
        registered: dict[int, nn.Module] = {id(script): self}
        parameters = {t.data_ptr(): t for t in script.parameters()}
        for node in _nodes(graph):
            if node.kind() not in ("prim::GetAttr", "prim::SetAttr"):
                continue
            owner = modules.get(next(node.inputs()).debugName())
            if owner is None:
                continue
            name = node.s("name")
            value = getattr(owner[0], name)
            if isinstance(value, torch.jit.ScriptModule):
                key = id(value)
                if key not in registered:
                    registered[key] = Part()
                    owner[1].add_module(f"part_{name}", registered[key])
                modules[node.output().debugName()] = (value, registered[key])
            elif isinstance(value, nn.Parameter) or (
                isinstance(value, Tensor) and value.data_ptr() in parameters and value.numel()
            ):
                owner[1].register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
            elif isinstance(value, Tensor) and name in dict(owner[0].named_buffers(recurse=False)):
                owner[1].register_buffer(name, value.detach().clone())
            elif name != "training":
                object.__setattr__(owner[1], name, value)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        source = self.script_source
        schema = source.script.forward.schema
        names = [a.name for a in schema.arguments[1:]]
        given = {a.name: a.default_value for a in schema.arguments[1:]}
        given |= dict(zip(names, args, strict=False)) | kwargs
        env = dict(
            zip(
                (v.debugName() for v in source.graph.inputs()),
                [self, *(given[n] for n in names)],
                strict=True,
            )
        )
        (result,) = _run(source.graph, env)
        return result


def keeps_states(script: Any) -> bool:
    """Whether a TorchScript module writes to its own attributes or buffers."""
    try:
        graph = script.inlined_graph
    except RuntimeError:
        return False
    return any(
        node.kind() == "prim::SetAttr"
        or (
            node.kind().startswith("aten::")
            and node.kind().endswith("_")
            and not node.kind().endswith("__")
            and _from_attribute(node)
        )
        for node in _nodes(graph)
    )


def _from_attribute(node: Any) -> bool:
    value = next(node.inputs(), None)
    while value is not None:
        made = value.node()
        if made.kind() == "prim::GetAttr":
            return True
        if made.kind() not in _VIEWS:
            return False
        value = next(made.inputs(), None)
    return False


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _run(block: Any, env: dict[str, Any]) -> list[Any]:
    """What a block gives back; ``env`` holds values by name."""
    for node in block.nodes():
        outputs = [v.debugName() for v in node.outputs()]
        results = _node(node, [env.get(v.debugName()) for v in node.inputs()], env)
        env.update(zip(outputs, results, strict=True))
    returned = block.outputs() if hasattr(block, "outputs") else block.returnNode().inputs()
    return [env[v.debugName()] for v in returned]


def _node(node: Any, given: list[Any], env: dict[str, Any]) -> list[Any]:
    kind = node.kind()
    if kind == "prim::Constant":
        return [node.output().toIValue()]
    if kind == "prim::If":
        branches = list(node.blocks())
        return _run(branches[0] if given[0] else branches[1], env)
    if kind == "prim::Loop":
        return _loop(node, given, env)
    if kind == "prim::GetAttr":
        return [_attribute(given[0], node.s("name"))]
    if kind == "prim::SetAttr":
        setattr(given[0], node.s("name"), given[1])
        return []
    if kind == "prim::ListConstruct":
        return [list(given)]
    if kind == "prim::TupleConstruct":
        return [tuple(given)]
    if kind == "prim::DictConstruct":
        return [dict(zip(given[::2], given[1::2], strict=True))]
    if kind in ("prim::TupleUnpack", "prim::ListUnpack"):
        return list(given[0])
    if kind in ("prim::TupleIndex",):
        return [given[0][given[1]]]
    if kind in _SAME:
        return [given[0]]
    if kind == "prim::Uninitialized":
        return [None]
    if kind == "prim::RaiseException":
        raise RuntimeError(str(given[0]))
    if kind == "prim::Print":
        return []
    if kind in ("prim::device", "prim::dtype", "prim::layout", "prim::is_cuda"):
        return [getattr(given[0], kind.partition("::")[2])]
    if kind in ("prim::min", "prim::max"):
        return [(min if kind.endswith("min") else max)(*given)]
    if kind == "prim::NumToTensor":
        return [torch.tensor(given[0])]
    if kind.startswith("aten::"):
        return _aten(node, kind.partition("::")[2], given)
    raise NotImplementedError(f"TorchScript's {kind}")


def _attribute(part: nn.Module, name: str) -> Any:
    inner = part._modules.get(f"part_{name}")
    return inner if inner is not None else getattr(part, name)


def _loop(node: Any, given: list[Any], env: dict[str, Any]) -> list[Any]:
    (body,) = node.blocks()
    limit, going, *carried = given
    names = [v.debugName() for v in body.inputs()]
    turn = 0
    while turn < limit and going:
        env.update(zip(names, [turn, *carried], strict=True))
        going, *carried = _run(body, env)
        turn += 1
    return carried


def _aten(node: Any, name: str, given: list[Any]) -> list[Any]:
    outputs = node.outputsSize()
    tensors = any(isinstance(v, Tensor) for v in given)
    if name in ("Int", "IntImplicit", "Float", "FloatImplicit", "Bool", "ScalarImplicit"):
        kinds: dict[str, Callable[[Any], Any]] = {"I": int, "F": float, "B": bool, "S": lambda v: v.item()}
        return [kinds[name[0]](given[0])]
    if name == "size":
        return [list(given[0].size()) if len(given) == 1 else given[0].size(given[1])]
    if name == "dim":
        return [given[0].dim()]
    if name == "lstm" and isinstance(given[1], list) and not given[7]:
        return list(_lstm(*given))
    if name == "gru" and isinstance(given[2], list) and not given[7]:
        return list(_gru(*given))
    if name in _PLAIN and (not tensors or name in ("append", "_set_item", "__is__", "__isnot__", "warn")):
        result = _PLAIN[name](*given)
        return [] if outputs == 0 else [given[0] if name == "append" else result]
    schema: Any = torch._C.parse_schema(node.schema())
    operators = getattr(torch.ops.aten, name)
    call = getattr(operators, schema.overload_name or "default")
    args, kwargs = [], {}
    for argument, value in zip(schema.arguments, given, strict=True):
        kind = str(argument.real_type)
        if isinstance(value, int) and not isinstance(value, bool):
            if "ScalarType" in kind:
                value = _DTYPES[value]
            elif "MemoryFormat" in kind:
                value = _FORMATS[value]
            elif "Layout" in kind:
                value = torch.strided
        elif isinstance(value, Tensor) and kind in ("number", "int", "float", "Scalar"):
            call = operators  # a number that is a state by now: the overload for tensors
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    result = call(*args, **kwargs)
    return [] if outputs == 0 else [result] if outputs == 1 else list(result)


def _weights(flat: list[Tensor], biases: bool, layer: int) -> tuple[Tensor, Tensor, Any, Any, Any]:
    count = 4 if biases else 2
    size = len(flat)
    if size % count and size % (count + 1) == 0:
        count += 1  # a projection
    w = flat[layer * count : (layer + 1) * count]
    return w[0], w[1], w[2] if biases else None, w[3] if biases else None, w[-1] if count % 2 else None


def _lstm(
    x: Tensor,
    hx: list[Tensor],
    flat: list[Tensor],
    biases: bool,
    layers: int,
    _: float,
    __: bool,
    ___: bool,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.nn.LSTM's equations, gates i, f, g, o."""
    if len(flat) == layers * (5 if biases else 3):
        raise NotImplementedError("a projected LSTM in TorchScript")
    time = 1 if first else 0
    states = [(hx[0][k], hx[1][k]) for k in range(layers)]
    outputs = []
    for y in x.unbind(time):
        for k in range(layers):
            w_x, w_h, b_x, b_h, _p = _weights(flat, biases, k)
            h, c = states[k]
            i, f, g, o = (functional.linear(y, w_x, b_x) + functional.linear(h, w_h, b_h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            y = torch.sigmoid(o) * torch.tanh(c)
            states[k] = (y, c)
        outputs.append(y)
    return (
        torch.stack(outputs, time),
        torch.stack([h for h, _ in states]),
        torch.stack([c for _, c in states]),
    )


def _gru(
    x: Tensor,
    hx: Tensor,
    flat: list[Tensor],
    biases: bool,
    layers: int,
    _: float,
    __: bool,
    ___: bool,
    first: bool,
) -> tuple[Tensor, Tensor]:
    """torch.nn.GRU's equations, the reset gate after the product."""
    time = 1 if first else 0
    states = [hx[k] for k in range(layers)]
    outputs = []
    for y in x.unbind(time):
        for k in range(layers):
            w_x, w_h, b_x, b_h, _p = _weights(flat, biases, k)
            r_x, z_x, n_x = functional.linear(y, w_x, b_x).chunk(3, 1)
            r_h, z_h, n_h = functional.linear(states[k], w_h, b_h).chunk(3, 1)
            z = torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
            y = states[k] = n + z * (states[k] - n)
        outputs.append(y)
    return torch.stack(outputs, time), torch.stack(states)
