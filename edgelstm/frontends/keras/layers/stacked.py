"""The cells of keras.layers.RNN: one, or several on top of each other within every step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from edgelstm.frontends.keras.builder import Array, Builder, Shape
from edgelstm.frontends.keras.layers.cells import Cell, GRUCell, LSTMCell, SimpleCell
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.names import snake_case
from edgelstm.frontends.keras.options import Options

_CELLS: dict[str, type[Cell]] = {"LSTMCell": LSTMCell, "GRUCell": GRUCell, "SimpleRNNCell": SimpleCell}
#: Cells inside cells.
_MAX_CELLS = 100


def read_cell(options: Options, key: str = "cell", given: Any = None) -> Cell:
    """The cell that option ``key`` states. Raises EdgeLstmError for cells that are code of their own."""
    given = options.get(key) if given is None else given
    config = given.get("config") if isinstance(given, dict) else None
    kind = given.get("class_name") if isinstance(given, dict) else None
    known = kind in _CELLS or kind == "StackedRNNCells"
    own = isinstance(given, dict) and given.get("registered_name") not in (None, kind, f"keras>{kind}")
    if not known or own or not isinstance(config, dict):
        raise options.error(
            key,
            f"one of {', '.join((*_CELLS, 'StackedRNNCells'))}",
            found=given.get("registered_name") or kind if isinstance(given, dict) else given,
            hint="A cell of one's own is code, which is never run: build it from these",
        )
    inner = Options(options.source, f"{options.path}/{key}", str(kind), config)
    cell: Cell = StackedCells(inner) if kind == "StackedRNNCells" else _CELLS[str(kind)](inner)
    inner.finish("input_dim")
    return cell


class StackedCells(Cell):
    """Each cell takes the output of the one below; the states lie one after the other."""

    def __init__(self, options: Options) -> None:
        Weighted.__init__(self, options)
        given = options.get("cells")
        if not isinstance(given, list) or not 0 < len(given) <= _MAX_CELLS:
            raise options.error("cells", f"1 to {_MAX_CELLS} cells")
        if options.flag("reverse_state_order"):
            raise options.error("reverse_state_order", "False")
        self.cells = [read_cell(options, f"cells[{k}]", item) for k, item in enumerate(given)]
        if any(isinstance(cell, StackedCells) for cell in self.cells):
            raise options.error("cells", "cells that are no stacks")
        self._kinds = [str(item["class_name"]) for item in given]
        self.parts = tuple(f"{k}.{part}" for k, cell in enumerate(self.cells) for part in cell.parts)
        counts = [len(cell.parts) for cell in self.cells]
        self._ends = list(accumulate(counts))
        self.shown = self._ends[-1] - counts[-1]

    def variables(self) -> tuple[list[str], list[str]]:
        return [], []

    def children(self) -> list[tuple[str, Weighted]]:
        seen: dict[str, int] = {}
        found: list[tuple[str, Weighted]] = []
        for kind, cell in zip(self._kinds, self.cells, strict=True):
            name = snake_case(kind)
            number = seen.get(name, 0)
            seen[name] = number + 1
            found.append((f"cells/{name}_{number}" if number else f"cells/{name}", cell))
        return found

    def taken(self, shape: Shape) -> tuple[tuple[int, ...], Shape]:
        return self.cells[0].taken(shape)[0], self.states(shape)[self.shown]

    def states(self, shape: Shape) -> list[Shape]:
        found = []
        for cell in self.cells:
            below = cell.states(shape)
            found += below
            shape = below[0]
        return found

    def step(self, g: Builder, x: str, states: Sequence[str], shape: Shape, place: str) -> list[str]:
        made: list[str] = []
        for k, (cell, end) in enumerate(zip(self.cells, self._ends, strict=True)):
            own = states[end - len(cell.parts) : end]
            after = cell.step(g, x, own, shape, f"{place}/{k}")
            made += after
            x, shape = after[0], cell.states(shape)[0]
        return made

    def project(self, x: Array) -> Array:
        return self.cells[0].project(x)

    def advance(self, x: Array, states: Sequence[Array]) -> list[Array]:
        made: list[Array] = []
        for k, (cell, end) in enumerate(zip(self.cells, self._ends, strict=True)):
            after = cell.advance(x, states[end - len(cell.parts) : end])
            made += after
            x = self.cells[k + 1].project(after[0]) if k + 1 < len(self.cells) else after[0]
        return made
