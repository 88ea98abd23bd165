"""Products of tensors: matmul, einsum, and the layer Dot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value, mixes_rows
from edgelstm.frontends.keras.calls import Slot
from edgelstm.frontends.keras.layers.layer import Memory, Tensor
from edgelstm.frontends.keras.operators.operator import Operator
from edgelstm.frontends.keras.options import Options


class Einsum(Operator):
    """A sum of products over named axes (numpy.einsum); the first of each tensor is the batch."""

    parameters = ("subscripts", "operands")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        text = str(options.get("subscripts")).replace(" ", "")
        given = options.get("operands")
        options.finish("name")
        self.operands = [x if isinstance(x, Slot) else np.asarray(x) for x in given]
        match = re.fullmatch(r"([A-Za-z]*)((?:,[A-Za-z]*)*)->([A-Za-z]*)", text)
        terms = [] if match is None else [match[1], *match[2].split(",")[1:]]
        if match is None or len(terms) != len(self.operands) or any(len(set(t)) < len(t) for t in terms):
            raise options.error("subscripts", "letters, such as 'btf,bsf->bts'")
        self.terms, self.result = terms, match[3]
        rows = {term[:1] for term, x in zip(terms, self.operands, strict=True) if isinstance(x, Slot)}
        fixed = "".join(t for t, x in zip(terms, self.operands, strict=True) if not isinstance(x, Slot))
        row = rows.pop() if len(rows) == 1 else ""
        inner = any(row in term[1:] for term in terms) or row in self.result[1:]
        if not row or self.result[:1] != row or inner or row in fixed:
            raise mixes_rows(self.what, text)
        self.keeps_time = False

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        values = self.unmasked(inputs)
        if any(v.time is not None for v in values):
            raise NeedsWindow(f"{self.what} takes whole sequences")
        sizes: dict[str, int] = {}
        names = []
        for term, x in zip(self.terms, self.operands, strict=True):
            shape = values[x.number].shape if isinstance(x, Slot) else x.shape
            letters = term[1:] if isinstance(x, Slot) else term
            if len(shape) != len(letters):
                raise EdgeLstmError(f"{self.what}: operand {term!r}", found=list(shape), expected=letters)
            for letter, n in zip(letters, shape, strict=True):
                if sizes.setdefault(letter, n) != n:
                    raise EdgeLstmError(f"{self.what}: axis {letter!r}", found=n, expected=sizes[letter])
            if isinstance(x, Slot):
                names.append(g.plain(g.cast(values[x.number], "float32")))
            else:
                names.append(g.constant(x.astype(np.float32), f"{place}/constant"))
        name = g.op("Einsum", names, place, equation=f"{','.join(self.terms)}->{self.result}")
        shape = tuple(sizes[letter] for letter in self.result[1:])
        return [Value(name, shape, ready=max(v.ready for v in values))]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        arrays = [inputs[x.number].data if isinstance(x, Slot) else x for x in self.operands]
        y = np.einsum(f"{','.join(self.terms)}->{self.result}", *arrays, optimize=True)
        return [Tensor(y, begun=all(x.begun for x in inputs))]


class Matmul(Operator):
    """x1 @ x2; the batch is never one of the two axes that are multiplied."""

    parameters = ("x1", "x2")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.operands = [self.operand(key) for key in self.parameters]
        self.turned = [options.flag("transpose_a"), options.flag("transpose_b")]
        options.finish("name")
        left = self.operands[0]
        self.fixed = self.operands[1] if not isinstance(self.operands[1], Slot) else None
        if not isinstance(left, Slot) or (
            self.fixed is not None and (self.fixed.ndim != 2 or any(self.turned))
        ):
            raise EdgeLstmError(f"{self.what}: operands", expected="a tensor times a tensor or a matrix")
        self.keeps_time = self.fixed is not None

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        values = [g.cast(v, "float32") for v in self.unmasked(inputs)]
        left = values[0]
        if self.fixed is not None:
            if not left.shape or left.shape[-1] != len(self.fixed):
                raise EdgeLstmError(f"{self.what}: shapes", found=list(left.shape), expected=len(self.fixed))
            weight = g.constant(self.fixed.astype(np.float32), f"{place}/constant")
            name = g.op("MatMul", [g.plain(left), weight], place)
            shape = (*left.shape[:-1], self.fixed.shape[1])
            return [replace(left, name=name, shape=shape, perm=tuple(range(len(shape) + 1)))]
        right = values[self.operands[1].number]  # type: ignore[union-attr]
        if {left.time, right.time} != {None}:
            raise NeedsWindow(f"{self.what} multiplies whole sequences")
        if len(left.shape) != len(right.shape) or len(left.shape) < 2:
            raise mixes_rows(self.what, f"shapes {list(left.shape)} and {list(right.shape)} of a row")
        shapes, names = [], []
        for value, turned in zip((left, right), self.turned, strict=True):
            axes = list(range(len(value.shape) + 1))
            row = list(value.shape)
            if turned:
                axes[-2:], row[-2:] = axes[:-3:-1], row[:-3:-1]
            names.append(g.layout(value, axes))
            shapes.append(row)
        (*lead, a, inner), (*lead_too, found, b) = shapes
        if inner != found or lead != lead_too:
            raise EdgeLstmError(f"{self.what}: shapes of a row", found=shapes, expected="matrices that fit")
        name = g.op("MatMul", names, place)
        return [Value(name, (*lead, a, b), ready=max(left.ready, right.ready))]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        left = inputs[0]
        if self.fixed is not None:
            return [replace(left, data=left.data @ self.fixed.astype(np.float64), mask=None)]
        pair: list[Array] = []
        for operand, turned in zip(self.operands, self.turned, strict=True):
            data = inputs[operand.number].data  # type: ignore[union-attr]
            pair.append(np.swapaxes(data, -1, -2) if turned else data)
        return [Tensor(pair[0] @ pair[1], begun=all(x.begun for x in inputs))]
