"""What a module does while it runs, operator by operator: what comes from what, what leaves for Python, what is drawn.

No source code is read. A result is made *from* a tensor when a chain of operators leads from one to the other. Where views and
writes in place make that hard to tell, more is taken for such a chain than there is, never less.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

#: Operators that only move numbers: what they give holds no more and no less than what they take.
_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "t",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "stack",
        "cat",
        "flatten",
        "unflatten",
        "movedim",
        "lift_fresh",
    ]
)
#: Operators whose result is a number of Python's, which may decide what runs next.
_ESCAPES = frozenset(["_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"])
#: Functions of ours that run between a user's line and the operator it asks for.
_OURS = ("__torch_dispatch__", "__torch_function__", "where")
_INTERNAL = tuple(
    str(path) + os.sep
    for path in (
        Path(__file__).resolve().parents[2],
        Path(torch.__file__).resolve().parent,
        Path(os.__file__).resolve().parent,
    )
)


@dataclass(eq=False)
class Node:
    """One value: what it was made from. moved: it is nothing but these, in another order or shape."""

    parents: tuple[Node, ...] = field(default=(), repr=False)
    moved: bool = False


@dataclass(eq=False)
class _Memory:
    """What views of one tensor share: the last thing written through any of them."""

    size: int
    written: Node | None = None


@dataclass(eq=False)
class _Known:
    node: Node
    memory: _Memory
    upto: Node | None = None


@dataclass(frozen=True)
class Event:
    """Something an operator did, the line of the user's code that asked for it, and what it was made from."""

    operator: str
    where: str | None
    node: Node


@dataclass
class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, keeps the origin of every tensor, and counts operators."""

    operators: int = 0
    escapes: list[Event] = field(default_factory=list)
    random: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._all: Any = WeakTensorKeyDictionary()

    __hash__ = object.__hash__

    def node(self, tensor: Tensor) -> Node:
        """The value a tensor has now."""
        known = self._known(tensor)
        if known.upto is not known.memory.written:
            known.upto = known.memory.written
            known.node = Node((known.node, *([known.upto] if known.upto else ())))
        return known.node

    def _known(self, tensor: Tensor) -> _Known:
        if tensor not in self._all:
            self._all[tensor] = _Known(Node(), _Memory(tensor.numel()))
        known: _Known = self._all[tensor]
        return known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema, name = func._schema, func._schema.name.partition("::")[2]
        given = _tensors((args, kwargs))
        parents = tuple(self.node(t) for t in given)
        self.operators += 1
        if name in _ESCAPES:
            self.escapes.append(Event(name, where(), Node(parents)))
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(name, args, kwargs):
            self.random.append(Event(name, where(), Node(parents)))
        result = func(*args, **kwargs)
        written = self._write(schema, name, args, kwargs, parents) if schema.is_mutable else []
        shared = bool(given and schema.returns and schema.returns[0].alias_info)
        size = (
            sum(t.numel() for t in given) if name in ("cat", "stack") else given[0].numel() if given else -1
        )
        for out in _tensors(result):
            if not any(out is each for each in written):
                memory = self._known(given[0]).memory if shared else _Memory(out.numel())
                node = Node(parents, moved=name in _MOVES and out.numel() == size)
                self._all[out] = _Known(node, memory, memory.written)
        return result

    def _write(
        self, schema: Any, name: str, args: Any, kwargs: Any, parents: tuple[Node, ...]
    ) -> list[Tensor]:
        """Note what an operator wrote in place; which tensors it wrote to."""
        written = []
        for k, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in _tensors(args[k] if k < len(args) else kwargs.get(argument.name)):
                known = self._known(tensor)
                whole = name == "copy_" and tensor.numel() == known.memory.size == args[1].numel()
                node = Node((self.node(args[1]),), moved=True) if whole else Node(parents)
                known.node = known.memory.written = known.upto = node
                written.append(tensor)
        return written


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _draws(name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operator that may draw numbers does: dropout in evaluation, or of nothing, does not."""
    if "dropout" in name:
        on = kwargs.get("train", args[2] if len(args) > 2 else True)
        return bool(on is None or on) and args[1] != 0
    if name.startswith("rrelu"):
        return bool(kwargs.get("training", args[4] if len(args) > 4 else False))
    return "attention" not in name and not name.startswith(("mkldnn", "_cudnn"))


@contextmanager
def watched() -> Iterator[Watch]:
    """Every operator by itself: the library that takes a whole layer in one call is off."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # this alone: the context manager of torch sets precisions as well
    try:
        with Watch() as watch:
            yield watch
    finally:
        torch._C._set_mkldnn_enabled(before)


def reaches(start: Iterable[Node], goals: Iterable[Node], without: Iterable[Node] = ()) -> bool:
    """Whether any of ``start`` is made from any of ``goals`` on a way that does not lead through ``without``."""
    blocked = set(map(id, _unmoved(without)))
    wanted = set(map(id, goals))
    todo = list(start)
    done: set[int] = set()
    while todo:
        node = todo.pop()
        if id(node) in done or id(node) in blocked:
            continue
        done.add(id(node))
        if id(node) in wanted:
            return True
        todo += node.parents
    return False


def moves_of(values: Sequence[Node], sources: Sequence[Node]) -> bool:
    """Whether each of ``values`` is nothing but the source in the same place."""
    return len(values) == len(sources) and all(
        any(node is source for node in _unmoved([value]))
        for value, source in zip(values, sources, strict=True)
    )


def _unmoved(nodes: Iterable[Node]) -> list[Node]:
    """These, and the same values before they were moved."""
    found: list[Node] = []
    todo = list(nodes)
    while todo:
        node = todo.pop()
        found.append(node)
        if node.moved:
            todo += node.parents
    return found


# -- the user's lines -------------------------------------------------------------------------------------------------


def where() -> str | None:
    """The innermost line of the user's code that is running now, ``net.py:12``; None where it is ours that does."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            return f"{Path(file).name}:{frame.f_lineno}"
        if file.startswith(_INTERNAL[0]) and frame.f_code.co_name not in _OURS:
            return None
        frame = frame.f_back
    return None


def where_raised(error: BaseException, of: Sequence[str] = ()) -> str | None:
    """The innermost line of the user's code that an exception went through, in it or in what caused it.

    of: the files to look in; else whatever is neither torch's, nor Python's, nor ours.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for each in reversed(chain):
        found, trace = None, each.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if file in of if of else is_users(file):
                found = f"{Path(file).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        if found:
            return found
    return None


def is_users(file: str) -> bool:
    """Whether a file is neither torch's, nor Python's, nor ours."""
    return not file.startswith((*_INTERNAL, "<")) and f"{os.sep}site-packages{os.sep}" not in file
