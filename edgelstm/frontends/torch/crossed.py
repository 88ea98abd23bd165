"""A cell state that comes back as h, and h as the cell state: results taken in another order than they were meant."""

from __future__ import annotations

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.torch_step import Picked, TorchStep, called
from edgelstm.frontends.torch.windows import TorchWindow
from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, is_standard

#: Operators that hand elements on as they are, the streams staying where they are.
_VIEWS = frozenset(["Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten"])


def refuse_crossed(step: StepModel, opened: TorchStep | TorchWindow) -> None:
    """``forward(x, c, h) -> (y, h, c)``: by shape and order alone, h would go in as c at the next call.

    Only where each state is an argument of its own: what is given back as a whole goes in as a whole, whatever it
    holds. A delay line of two states is no such case: its cell state is no next value of the other.

    Raises EdgeLstmError, which asks for ``results``, where a FusedGates says that two states change places.
    """
    if not isinstance(opened, TorchStep):
        return
    form = opened.form
    if form.arguments != "leaves" or form.picked is None:
        return
    graph = Graph(step)
    ends = {state.input: state for state in step.signature.states}
    made = {_origin(graph, state.output): state for state in step.signature.states}
    for node in graph.nodes:
        if not is_fused_gates(node):
            continue
        cell = ends.get(_origin(graph, node.input[1]))
        as_h, as_c = made.get(node.output[0]), made.get(node.output[1])
        if cell is None or as_h is not cell or as_c is None:
            continue
        names = [state.name for state in step.signature.states]
        swapped = [_other(name, cell.name, as_c.name) for name in names]
        options = [_said(form.picked, order) for order in (swapped, names)]
        raise EdgeLstmError(
            f"{cell.name!r} goes into {called(opened.module)} as a cell state, and what would come back as {cell.name!r} is h",
            found=f"results in another order than the arguments {', '.join(names)}; of {as_c.name!r} the next value would be c",
            expected=f"a word on it: --results {' or --results '.join(options)} (results={options[0].split(',')!r})",
            hint="In the order forward gives them: a state's name marks its next value, any other name an output",
        )


def _origin(graph: Graph, value: str) -> str:
    """The value that is handed on as ``value``."""
    node = graph.producer(value)
    while node is not None and node.op_type in _VIEWS and is_standard(node):
        value = node.input[0]
        node = graph.producer(value)
    return value


def _other(name: str, one: str, two: str) -> str:
    return {one: two, two: one}.get(name, name)


def _said(picked: Picked, names: list[str]) -> str:
    """The results by name."""
    count = 1 + max(*picked.states, *picked.outputs)
    labels = [f"y{k}" if len(picked.outputs) > 1 else "y" for k in range(count)]
    for name, place in zip(names, picked.states, strict=False):
        labels[place] = name
    return ",".join(labels)
