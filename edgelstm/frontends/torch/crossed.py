"""Results that come back in another order than their states go in: told by what the graph does with each state.

    carried     c of an LSTM and h of a GRU go into their own next value by sums and products alone, not through tanh: where that
                value comes back as another state, and this state gets something else, they have changed places
    not made    nothing of a state is in its next value (h of the second layer in that of the first)

What is only handed on (a delay line of states), and what is made of the frame alone, is no such case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.first_call import FirstCall
from edgelstm.frontends.torch.inner_states import Inside
from edgelstm.frontends.torch.kept import Kept
from edgelstm.frontends.torch.pairing import said
from edgelstm.frontends.torch.torch_step import TorchStep, called
from edgelstm.frontends.torch.windows import TorchWindow
from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.signature import StateSpec
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, is_standard, node_inputs

#: Operators that hand elements on as they are, the streams staying where they are.
_VIEWS = frozenset(["Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Cast"])
#: Operators by which a state is carried, element by element, into its next value: these, and then a sum or a choice.
_SCALES = frozenset(["Mul", "Neg", "Div", *_VIEWS])
_SUMS = frozenset(["Add", "Sub", "Sum", "Where"])
#: Orders that are proposed at most.
_OPTIONS = 2


def check_order(
    step: StepModel, opened: TorchStep | TorchWindow, works: Callable[[list[str]], bool]
) -> tuple[str, ...]:
    """What is to be said of states that change places; nothing where none do.

    works: whether the module is a step with its results named so; only such names are proposed. Raises EdgeLstmError, which asks
    for ``results``, where the states do not go in and come back as one thing: then their order is the module's own word.
    """
    if not isinstance(opened, TorchStep) or isinstance(opened.module, FirstCall | Inside | Kept):
        return ()
    form = opened.form
    if form.picked is None or form.time is not None or len(form.picked.states) < 2:
        return ()
    look = _Look(step, opened)
    wrong = [k for k in range(len(form.picked.states)) if not look.allowed(k, k)]
    if not wrong:
        return ()
    orders = [[form.picked.states[p] for p in order] for order in islice(look.orders(), _OPTIONS)]
    options = [text for text in (said(form.picked, form.keys, o) for o in orders) if works(text.split(","))]
    if next(look.orders(), None) is None:
        return ()  # no other order would be better
    key = form.keys[wrong[0]]
    what = f"{key!r} goes into {called(opened.module)} as {look.role(wrong[0])}, and what comes back in its place is another"
    if not options:
        return (f"{what}: taken as they come",)
    if form.whole:
        return (
            f"{what}: taken so, since its states come back as one thing, as they go in; --results {options[0]} puts them back",
        )
    as_it_is = said(form.picked, form.keys)
    options += [as_it_is] if works(as_it_is.split(",")) else []
    raise EdgeLstmError(
        what,
        found=f"results in another order than the states {', '.join(form.keys)}",
        expected=f"a word on it: --results {' or --results '.join(options)} (results={options[0].split(',')!r})",
        hint="In the order forward gives them: a state's name marks its next value, any other name an output"
        + (". The last takes them as they come" if as_it_is in options else ""),
    )


class _Look:
    """What a step's graph does with its states; they are counted as the module has them, its stacked layers together."""

    def __init__(self, step: StepModel, opened: TorchStep) -> None:
        self.graph = Graph(step)
        self.by_place = {
            (place.leaf, place.part): state
            for place, state in zip(opened.places, step.signature.states, strict=True)
        }
        self.states = step.signature.states
        self.count = len(opened.form.keys)
        self._before: dict[str, frozenset[str]] = {}

    def orders(self) -> Iterator[tuple[int, ...]]:
        """Ways to give every state a next value that nothing speaks against, other than as they come."""

        def further(taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            if len(taken) == self.count:
                yield taken
                return
            for p in range(self.count):
                if p not in taken and self.allowed(len(taken), p):
                    yield from further((*taken, p))

        return (order for order in further(()) if order != tuple(range(self.count)))

    def allowed(self, k: int, p: int) -> bool:
        """Whether the next value of state ``p`` may be that of state ``k``."""
        pairs = [(s, self.by_place.get((p, part))) for (leaf, part), s in self.by_place.items() if leaf == k]
        return all(b is not None and self._may_follow(a, b) for a, b in pairs)

    def role(self, k: int) -> str:
        """What the graph makes of a state, in words."""
        state = next(s for (leaf, _), s in self.by_place.items() if leaf == k)
        cells = [n for n in self.graph.nodes if is_fused_gates(n)]
        if any(self._origin(n.input[1]) == state.input for n in cells):
            return "a cell state"
        return "what is carried by sums and products" if state.input in self._carried else "a state"

    def _may_follow(self, state: StateSpec, other: StateSpec) -> bool:
        if (state.shape, state.dtype) != (other.shape, other.dtype):
            return False
        value = other.output
        if self.graph.producer(self._origin(value)) is None or not self._made_from(value) & self._inputs:
            return True  # handed on; or made of the frame alone
        if state.input not in self._made_from(value):
            return False
        into = self._carried.get(state.input, frozenset())
        return other.name in into or not into

    @cached_property
    def _inputs(self) -> frozenset[str]:
        return frozenset(s.input for s in self.states)

    @cached_property
    def _carried(self) -> dict[str, frozenset[str]]:
        """Input of each state -> states whose next values it is carried into by a sum."""
        found: dict[str, frozenset[str]] = {}
        for state in self.states:
            reached = {state.input: False}
            for node in self.graph.nodes:  # in order of computing
                if is_fused_gates(node):
                    if node.input[1] in reached:
                        reached[node.output[1]] = True
                elif is_standard(node) and node.op_type in _SCALES | _SUMS:
                    given = node.input[:1] if node.op_type in ("Div", *_VIEWS) else node.input
                    given = node.input[1:] if node.op_type == "Where" else given
                    taken = [name for name in given if name in reached]
                    if taken:
                        summed = node.op_type in _SUMS and all(
                            self.graph.constant(name) is None for name in node.input
                        )
                        reached[node.output[0]] = summed or any(reached[name] for name in taken)
            into = frozenset(s.name for s in self.states if reached.get(s.output))
            if into:
                found[state.input] = into
        return found

    def _made_from(self, value: str) -> frozenset[str]:
        """All values that ``value`` is made from."""
        if value not in self._before:
            done: set[str] = set()
            todo = [value]
            while todo:
                name = todo.pop()
                if name in done:
                    continue
                done.add(name)
                node = self.graph.producer(name)
                if node is not None:
                    todo += [n for n in node_inputs(node) if n]
            self._before[value] = frozenset(done)
        return self._before[value]

    def _origin(self, value: str) -> str:
        """The value that is handed on as ``value``."""
        node = self.graph.producer(value)
        while node is not None and node.op_type in _VIEWS and is_standard(node):
            value = node.input[0]
            node = self.graph.producer(value)
        return value
