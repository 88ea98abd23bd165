"""Which outputs of somebody else's graph are fed back into which inputs: proposals, for the user to confirm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

import onnx

from edgelstm.frontends.onnx.borders import Borders
from edgelstm.graph.step import StepModel
from edgelstm.passes.control_flow import BEFORE
from edgelstm.passes.graph import Graph, is_standard
from edgelstm.passes.rnn_operator import Inputs, is_rnn, name_at
from edgelstm.passes.shapes import shapes_of

#: Operators that hand elements on as they are.
_MOVES = frozenset(
    [
        *(
            "Cast",
            "Concat",
            "Dropout",
            "Expand",
            "Flatten",
            "Gather",
            "Identity",
            "Reshape",
            "Slice",
            "Split",
        ),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    ]
)
_GATES = ("Sigmoid", "HardSigmoid", "Clip")
#: Words that tell a state's input from its output, or say nothing.
_AFFIXES = re.compile(
    r"in|out|inputs?|outputs?|next|new|prev|previous|last|old|cur|current|init|initial|final|updated|after|before|[nt0]"
)
_STATE_WORDS = re.compile(
    r"(^|[^a-z])(h|c|hx|cx|hn|cn|rnn|lstm|gru)([^a-z]|$)|state|hidden|cell|cache|memory|context"
)


@dataclass(frozen=True)
class Pair:
    """A graph input, the output that is proposed as its next value, and why."""

    input: str
    output: str
    reasons: tuple[str, ...]

    @property
    def option(self) -> str:
        """As the command line takes it."""
        return f"--state {self.input}={self.output}"


def propose_pairs(borders: Borders, step: StepModel, values: Mapping[str, str]) -> list[Pair]:
    """State pairs that the graph suggests, in the order of its inputs; none where nothing speaks for one.

    values: output of the file -> the value of ``step`` that it is. A pair needs equal dtype and shape, a path from the
    input to the output, and one of: the input reaches a recurrent operator's initial state (and the output comes from
    that operator's last state), it is multiplied by a gate, or the names are those of a state. Of several outputs that
    fit, the one of the same operator and state (h or c) is taken, then the one that is named alike, then the first.
    At least one input stays a frame.
    """
    look = _Look(step)
    scored = []
    for place, given in enumerate(borders.inputs):
        slots, gated = look.uses(given.name)
        for rank, output in enumerate(borders.outputs):
            value = values[output]
            if not look.fits(given.name, given.shape, given.axis, value) or not look.reaches(
                given.name, value
            ):
                continue
            same_slot = bool(slots & look.sources(value))
            likeness = name_likeness(given.name, output)
            reasons = ["same shape and dtype"]
            if same_slot:
                reasons.append("state of a recurrent operator")
            elif slots:
                reasons.append("reaches a recurrent operator's initial state")
            if gated:
                reasons.append("multiplied by a gate")
            if likeness >= 0.6:
                reasons.append("named alike")
            named = likeness >= 0.6 and _STATE_WORDS.search(given.name.lower()) is not None
            if slots or gated or named:
                weight = 4.0 * same_slot + 2.0 * bool(slots) + bool(gated) + 2.0 * likeness
                scored.append((-weight, abs(place - rank), place, Pair(given.name, output, tuple(reasons))))
    chosen: dict[str, Pair] = {}
    taken: set[str] = set()
    for *_, pair in sorted(scored, key=lambda entry: entry[:3]):
        if pair.input not in chosen and pair.output not in taken and len(chosen) < len(borders.inputs) - 1:
            chosen[pair.input] = pair
            taken.add(pair.output)
    return [chosen[i.name] for i in borders.inputs if i.name in chosen]


def name_likeness(a: str, b: str) -> float:
    """How alike two names are, 0 to 1, apart from what tells an input from an output: 1 for h_in and h_out."""
    first, second = (_core(name) for name in (a, b))
    return 1.0 if first == second else SequenceMatcher(None, first, second).ratio()


def _core(name: str) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    lower = [word.lower() for word in words]
    kept = [word for word in lower if not _AFFIXES.fullmatch(word)]
    # A single letter with an affix glued to it: hn, cn, hx, stateN.
    return "_".join(re.sub(r"^([hc])[nxt]$", r"\1", word) for word in kept) or "_".join(lower)


class _Look:
    """What the graph does with its inputs."""

    def __init__(self, step: StepModel) -> None:
        self.graph = Graph(step)
        self.shapes = shapes_of(step, 3)
        self.streams = step.signature.stream_axis if isinstance(step.signature.stream_axis, int) else 3
        self.types = {t.name: t.dtype for t in step.signature.inputs}
        self.step = step

    def fits(self, name: str, shape: Iterable[object], axis: int, value: str) -> bool:
        """Whether ``value`` has the shape the input has in its file, where that is known."""
        found = self.shapes.get(value)
        want = [self.streams if k == axis else d for k, d in enumerate(shape)]
        return found is None or list(found) == want

    def reaches(self, name: str, value: str) -> bool:
        alive = self.graph.alive([value])
        return any(id(node) in alive for node in self.graph.consumers(name))

    def uses(self, name: str) -> tuple[set[tuple[str, str]], bool]:
        """The recurrent operators' states that ``name`` reaches untouched, as (operator, h or c); is it gated?"""
        slots: set[tuple[str, str]] = set()
        gated = False
        waiting, seen = [name], {name}
        while waiting:
            value = waiting.pop()
            for node in self.graph.consumers(value):
                if is_rnn(node):
                    for letter, place in (("h", Inputs.INITIAL_H), ("c", Inputs.INITIAL_C)):
                        if name_at(node.input, place) == value:
                            slots.add((_key(node), letter))
                elif node.op_type == "Mul" and is_standard(node):
                    gated = gated or self._is_kept(node, value)
                elif _moves(node):
                    new = [output for output in node.output if output not in seen]
                    seen.update(new)
                    waiting += new
        return slots, gated

    def _is_kept(self, product: onnx.NodeProto, value: str) -> bool:
        """Whether ``product`` is gate * value and something is added to it, as in f * c + i * g: a mask has no sum."""
        others = [name for name in product.input if name != value]
        added = any(node.op_type in ("Add", "Sum") for node in self.graph.consumers(product.output[0]))
        return added and any(self._is_gate(name) for name in others)

    def _is_gate(self, value: str) -> bool:
        """An activated gate, or a part cut out of several."""
        cut = self.graph.producer(value, "Split", "Slice")
        return self.graph.producer(cut.input[0] if cut is not None else value, *_GATES) is not None

    def sources(self, value: str) -> set[tuple[str, str]]:
        """The recurrent operators whose last state ``value`` is, as (operator, h or c)."""
        slots: set[tuple[str, str]] = set()
        waiting, seen = [value], {value}
        while waiting:
            name = waiting.pop()
            node = self.graph.producer(name)
            if node is None:
                continue
            if is_rnn(node):
                letter = "c" if name_at(node.output, 2) == name else "h"
                slots.add((_key(node), letter))
            elif _moves(node):
                new = [source for source in node.input if source not in seen]
                seen.update(new)
                waiting += new
        return slots


def _key(node: onnx.NodeProto) -> str:
    return str(next(name for name in node.output if name))


def _moves(node: onnx.NodeProto) -> bool:
    """Whether the node hands elements on as they are."""
    return node.op_type == BEFORE or (node.op_type in _MOVES and is_standard(node))
