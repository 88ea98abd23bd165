"""Which outputs of somebody else's graph are fed back into which inputs: proposals, for the user to confirm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from edgelstm.frontends.onnx.borders import Borders, Input
from edgelstm.frontends.onnx.state_roles import Role, Roles
from edgelstm.graph.step import StepModel, dtype_name
from edgelstm.passes.graph import Graph
from edgelstm.passes.shapes import element_types, shapes_of

#: Words that tell a state's input from its output, or say nothing.
_AFFIXES = re.compile(
    r"in|out|inputs?|outputs?|next|new|prev|previous|last|old|cur|current|init|initial|final|updated|after|before|[nt0]"
)
_STATE_WORDS = re.compile(
    r"(^|[^a-z])(h|c|hx|cx|hn|cn|rnn|lstm|gru)([^a-z]|$)|state|hidden|cell|cache|memory|context"
)
#: What says that a tensor is the next value of another, and not just what comes out.
_NEXT = re.compile(r"(^|[^a-z])(next|new|updated|after)([^a-z]|$)")
_FRAME = re.compile(
    r"x|inputs?|frames?|data|audio|images?|img|obs|observations?|features?|feats|signal|waveform|mel|spectrogram|tokens?"
)
#: Likeness from which names count as alike, and as the same apart from in and out.
ALIKE, SAME = 0.6, 0.99


@dataclass(frozen=True)
class Pair:
    """A graph input, the output that is proposed as its next value, and why. ``doubt``: why not, where something speaks against."""

    input: str
    output: str
    reasons: tuple[str, ...]
    doubt: str | None = None

    @property
    def option(self) -> str:
        """As the command line takes it."""
        return f"--state {self.input}={self.output}"

    def __str__(self) -> str:
        said = f"{self.input} and {self.output} ({', '.join(self.reasons)})"
        return said if self.doubt is None else f"{said}; doubtful: {self.doubt}"


@dataclass(frozen=True)
class _Candidate:
    """An input and an output of one shape and dtype, with a path from the one to the other."""

    given: Input
    output: str
    shared: frozenset[Role]
    known: bool
    likeness: float

    @property
    def sure(self) -> int:
        return sum(role.sure for role in self.shared)


def propose_pairs(borders: Borders, step: StepModel, values: Mapping[str, str]) -> list[Pair]:
    """State pairs that the graph suggests, in the order of its inputs; none where nothing speaks for one.

    values: output of the file -> the value of ``step`` that it is. A pair needs equal dtype and shape and a path from the
    input to the output. What it then is follows from the graph, in this order:

    1. the input is c of a cell or the initial state of a recurrent operator, and the output its next c or last state;
    2. the input goes into the gates of a cell, and the output is its h. Frames do that as well: where several inputs
       could be h, the pair is doubtful unless names tell which;
    3. neither has such a part, and the names are those of a state.

    Of outputs that are equally right the one named alike is taken, then the last: they have one value. A pair is
    doubtful, too, where the names say otherwise than the graph. At least one input stays a frame.
    """
    inputs = {i.name: i for i in borders.inputs}
    look = _Look(step, borders, values)
    chosen: dict[str, Pair] = {}

    def free(sure: bool) -> list[_Candidate]:
        taken = {pair.output for pair in chosen.values()}
        return [
            c
            for c in look.candidates
            if c.given.name not in chosen and c.output not in taken and (bool(c.sure) or not sure)
        ]

    while len(chosen) < len(inputs) - 1 and (rest := free(sure=True)):
        best = max(rest, key=lambda c: (c.sure, c.likeness, borders.outputs.index(c.output)))
        reason = (
            "the state of one recurrent operator"
            if look.operators(best)
            else "multiplied by a gate and added to"
        )
        chosen[best.given.name] = look.pair(best, reason)
    for cell in look.roles.cells:
        rest = [c for c in free(sure=False) if any(r.cell == cell and r.part == "h" for r in c.shared)]
        if rest and len(chosen) < len(inputs) - 1:
            pair = look.choose(rest)
            chosen[pair.input] = pair
    named = [c for c in free(sure=False) if not c.shared and _is_named(c.given.name, c.output)]
    for c in sorted(named, key=lambda c: -c.likeness):
        if len(chosen) < len(inputs) - 1 and c in free(sure=False):
            chosen[c.given.name] = look.pair(c, "named alike", look.against(c))
    pairs = [chosen[i] for i in inputs if i in chosen]
    left = [i for i in inputs if i not in chosen and any(r.sure for r in look.inputs[i])]
    if pairs and left:
        doubt = f"{left[0]} is the state of a cell as well, and no output continues it"
        pairs[0] = replace(pairs[0], doubt=pairs[0].doubt or doubt)
    return pairs


def at_odds(named: Mapping[str, str], proposed: Sequence[Pair]) -> tuple[str, ...]:
    """What speaks against pairs that the user named: a pair that is beyond doubt, of which they name one half or none.

    named: input -> output. The file streamed with pairs that are crossed is equal to itself, so no comparison tells.
    """
    notes = []
    for pair in proposed:
        if pair.doubt is not None or named.get(pair.input) == pair.output:
            continue
        likely = f"the graph says {pair.input}={pair.output} ({', '.join(pair.reasons)})"
        if pair.input in named:
            notes.append(
                f"state {pair.input}: {likely}, not {named[pair.input]}, as named; if that was not meant: {pair.option}"
            )
        elif pair.output not in named.values():
            notes.append(
                f"{pair.input} is no state, as none was named for it, and wants a value every frame; {likely}: {pair.option}"
            )
    return tuple(notes)


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


def _is_named(name: str, output: str) -> bool:
    """Whether the names are those of a state before and after."""
    if _FRAME.fullmatch(name.lower()):
        return False
    likeness = name_likeness(name, output)
    state = _STATE_WORDS.search(name.lower()) is not None
    return (state and likeness >= ALIKE) or (likeness >= SAME and _NEXT.search(output.lower()) is not None)


def _is_frame(c: _Candidate) -> bool:
    return _FRAME.fullmatch(c.given.name.lower()) is not None


class _Look:
    """What the graph does with its inputs, and which outputs could follow them."""

    def __init__(self, step: StepModel, borders: Borders, values: Mapping[str, str]) -> None:
        self.graph, self.values = Graph(step), values
        self.roles = Roles.of(self.graph)
        self.shapes = shapes_of(step, 3)
        self.streams = step.signature.stream_axis if isinstance(step.signature.stream_axis, int) else 3
        self.types = element_types(step)
        self.inputs = {i.name: self.roles.of_input(i.name) for i in borders.inputs}
        self.outputs = {output: self.roles.of_output(values[output]) for output in borders.outputs}
        self.candidates = []
        for given in borders.inputs:
            for output in borders.outputs:
                known = self._fits(given, values[output])
                if known is not None and self._reaches(given.name, values[output]):
                    shared = frozenset(self.inputs[given.name] & self.outputs[output])
                    likeness = name_likeness(given.name, output)
                    self.candidates.append(_Candidate(given, output, shared, known, likeness))

    def operators(self, c: _Candidate) -> bool:
        """Whether what they share is the state of a recurrent operator."""
        return any(role.sure and role.cell not in self.roles.cells for role in c.shared)

    def pair(self, c: _Candidate, reason: str, doubt: str | None = None) -> Pair:
        """The pair, with all that speaks for it and against it."""
        reasons = ["same shape and dtype", reason] if c.known else [reason]
        if c.likeness >= ALIKE and reason != "named alike":
            reasons.append("named alike")
        if doubt is None and not c.known:
            doubt = "the shape of the output is not known"
        if doubt is None and _is_frame(c):
            doubt = f"{c.given.name} is named like a frame"
        if doubt is None and c.likeness < SAME:
            others = [o for o in self.candidates if o.given is c.given and o.likeness >= SAME]
            others = [o for o in others if _STATE_WORDS.search(o.given.name.lower())]
            if others and not (others[0].shared & c.shared):
                doubt = f"the name says {others[0].output}, the graph {c.output}"
        return Pair(c.given.name, c.output, tuple(reasons), doubt)

    def choose(self, rest: list[_Candidate]) -> Pair:
        """Which of several inputs that go into a cell's gates is its h: names tell, or it is doubtful."""
        reason = "goes into the gates that make it"
        best = max(rest, key=lambda c: (not _is_frame(c), c.likeness >= ALIKE, c.likeness, -rest.index(c)))
        others = sorted({c.given.name for c in rest if c.given is not best.given})
        if not others:
            return self.pair(best, reason)
        rivals = [c.given.name for c in rest if c.given is not best.given and c.likeness >= best.likeness]
        if best.likeness >= ALIKE and _STATE_WORDS.search(best.given.name.lower()) and not rivals:
            return self.pair(best, reason)
        return self.pair(best, reason, f"{', '.join(others)} could be it as well")

    def against(self, c: _Candidate) -> str | None:
        """What the graph says against a pair that only its names speak for."""
        for name, roles in ((c.given.name, self.inputs[c.given.name]), (c.output, self.outputs[c.output])):
            if any(role.sure for role in roles):
                return f"in the graph {name} is {next(r.part for r in roles if r.sure)} of a cell that the other has no part in"
        sums = self.roles.added_to(self.values[c.output])
        others = [o.given.name for o in self.candidates if o.output == c.output and o.given.name in sums]
        if others and c.given.name not in others:
            return f"{c.output} is {others[0]} and something added to it"
        rivals = [
            o for o in self.candidates if o.given is c.given and o is not c and o.likeness >= c.likeness
        ]
        return f"{rivals[0].output} is named alike too" if rivals else None

    def _fits(self, given: Input, value: str) -> bool | None:
        """Whether ``value`` is known to have the shape and dtype of the input in its file; None where it has others."""
        found, elem = self.shapes.get(value), self.types.get(value)
        want = [self.streams if k == given.axis else d for k, d in enumerate(given.shape)]
        if elem is not None and dtype_name(elem) != given.dtype:
            return None
        if found is not None and list(found) != want:
            return None
        return found is not None and elem is not None

    def _reaches(self, name: str, value: str) -> bool:
        alive = self.graph.alive([value])
        return any(id(node) in alive for node in self.graph.consumers(name))
