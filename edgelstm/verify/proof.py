"""Is a graph right? Judged against float64, beside what its source itself loses to rounding.

Two right computations of one function in float32 differ, by how much depends on the function: nothing in a plain cell, a
thousand times more where large terms cancel. So neither is the truth. The same function is computed in float64, and the
graph may be as far from that as the source is, times a small factor.

Every element is held to its own allowance, so that a small channel does not hide behind a large one:

    FACTOR * (the source's error) + ROUNDINGS * eps * (largest value)          both over all frames of the comparison

and ``UNIT`` * eps where sigmoid, tanh or softmax made the value: their error in ONNX Runtime is one of 1, not of what is left
near 0. Measured there (1.31): up to 2.7 eps, against 0.5 eps in NumPy and torch. Hence ``FACTOR``: 5 for that, and the rest for the luck of
few samples. An element's error counts at least as what is usual for the tensor, relative to its size, and as what its
neighbours along an axis show: an error measured once may be 0 by luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.runtime.protocol import Frame, Program
from edgelstm.verify.compare import (
    Comparison,
    TensorError,
    advance,
    check_comparable,
    converted,
    shared_names,
    state_values,
)
from edgelstm.verify.series import Array, json_number

#: How much farther from float64 than its source a graph may be.
FACTOR = 8.0
#: Roundings of the dtype at an element's largest value that always pass.
ROUNDINGS = 8.0
#: The same of 1, where a bounded function made the value.
UNIT = 4.0
#: Elements of an axis whose largest error says something of its others.
MANY = 8
#: The distance from 1 to the next number. float32 for whatever is not named.
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}
EPS32 = 2.0**-23


class NotFinite(EdgeLstmError):
    """The source gives NaN or infinity for a frame: nothing can be told of it."""


@dataclass(repr=False)
class TensorProof:
    """One output or state: relative errors of source and graph against float64, and where the graph comes nearest its limit.

    source, graph: largest error of any frame, relative to the largest value of that frame (which counts as at least a
    tenth of the largest of all frames: values pass through zero). share: the largest part of an element's allowance that was
    used; more than 1 is a fault. frame, element: where.
    """

    name: str
    kind: str
    source: float
    graph: float
    share: float
    frame: int
    element: tuple[int, ...]

    def __repr__(self) -> str:
        return f"TensorProof({self.kind} {self.name!r}: source {self.source:.2g}, graph {self.graph:.2g} from float64)"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; what is not finite becomes null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "source": json_number(self.source),
            "graph": json_number(self.graph),
            "share": json_number(self.share),
            "frame": self.frame,
            "element": list(self.element),
        }


@dataclass(repr=False)
class Proof:
    """What :func:`prove` found. together: each step began from equal states. comparison: the graph against float64."""

    tensors: list[TensorProof]
    comparison: Comparison
    together: bool

    @property
    def worst(self) -> TensorProof:
        """The tensor that uses most of its allowance."""
        return max(self.tensors, key=lambda t: t.share)

    @property
    def holds(self) -> bool:
        """Whether every element is within its allowance."""
        return self.worst.share <= 1

    @property
    def source(self) -> float:
        """The source's largest relative error."""
        return max(t.source for t in self.tensors)

    @property
    def graph(self) -> float:
        """The graph's largest relative error."""
        return max(t.graph for t in self.tensors)

    @property
    def text(self) -> str:
        """In one line."""
        return f"source {self.source:.1e} from float64, graph {self.graph:.1e}"

    def __repr__(self) -> str:
        return f"Proof({self.text}, {count_of(self.comparison.frames, 'frame')}{', from equal states' * self.together})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": json_number(self.source),
            "graph": json_number(self.graph),
            "share": json_number(self.worst.share),
            "from_equal_states": self.together,
            "tensors": [t.to_json() for t in self.tensors],
        }


@dataclass
class _Tensor:
    """Errors of one tensor, element by element, over the frames so far."""

    name: str
    kind: str
    eps: float
    bounded: bool
    ours: TensorError = field(init=False)
    theirs: TensorError = field(init=False)
    count: int = 0
    size: Array | None = None  # largest |exact|
    of_source: Array | None = None  # largest error
    of_graph: Array | None = None
    when: Array | None = None

    def __post_init__(self) -> None:
        self.ours, self.theirs = TensorError(self.name, self.kind), TensorError(self.name, self.kind)

    def add(self, frame: int, exact: Array, source: Array, graph: Array) -> None:
        """One frame. Raises NotFinite where exact or source hold NaN or infinity."""
        for what, value in (("in float64", exact), ("in its own precision", source)):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                found = "NaN" if np.isnan(value).any() else "infinity"
                raise NotFinite(
                    f"the source gives {found} for frame {frame}",
                    found=f"in {self.kind} {self.name!r}, computed {what}",
                    expected="numbers: what is not a number equals nothing, and nothing can be proved with it",
                    hint="Compare on frames that the model was made for: --source FILE (frames= in Python)",
                )
        self.ours.add(frame, exact, graph)
        self.theirs.add(frame, exact, source)
        e = exact.astype(np.float64)
        # np.asarray: of a single number NumPy makes no array.
        size = np.asarray(np.abs(e))
        of_source = np.asarray(np.abs(source.astype(np.float64) - e))
        with np.errstate(invalid="ignore"):
            of_graph = np.asarray(np.abs(graph.astype(np.float64) - e))
        of_graph[np.isnan(of_graph)] = np.inf
        self.count += 1
        if self.size is None:
            self.size, self.of_source, self.of_graph = size, of_source, of_graph
            self.when = np.full(e.shape, frame)
            return
        assert self.of_source is not None
        assert self.of_graph is not None
        assert self.when is not None
        self.size = np.maximum(self.size, size)
        self.of_source = np.maximum(self.of_source, of_source)
        self.when = np.asarray(np.where(of_graph > self.of_graph, frame, self.when))
        self.of_graph = np.maximum(self.of_graph, of_graph)

    def proof(self) -> TensorProof:
        assert self.size is not None
        assert self.of_source is not None
        assert self.of_graph is not None
        assert self.when is not None
        allowed = allowance(self.size, self.of_source, self.count, self.eps, self.bounded)
        share = np.divide(
            self.of_graph,
            allowed,
            out=np.asarray(np.where(self.of_graph > 0, np.inf, 0.0)),
            where=allowed > 0,
        )
        share = np.asarray(share)
        if not share.size:
            return TensorProof(self.name, self.kind, 0.0, 0.0, 0.0, 0, ())
        place = np.unravel_index(int(np.argmax(share)), share.shape)
        element = tuple(int(k) for k in place)
        return TensorProof(
            self.name,
            self.kind,
            self.theirs.held,
            self.ours.held,
            float(share[place]),
            int(self.when[place]),
            element,
        )


def allowance(size: Array, source: Array, count: int, eps: float, bounded: bool = False) -> Array:
    """How far from float64 each element may be; see the head of this file.

    size, source: largest value and largest error of the source, of each element over ``count`` frames.
    """
    if not size.size:
        return size
    seen = size > 0
    usual = float(np.median(source[seen] / size[seen])) if seen.any() else 0.0
    around = np.maximum(source, usual * size)
    large = size
    if size.ndim > 1:
        around = np.maximum(around, _neighbours(source))
        large = np.maximum(large, _neighbours(size))
    else:
        # What is 0 in every frame has no size of its own: a relu that is always shut.
        large = np.where(seen, size, size.max())
    factor = FACTOR * (1 + 4 / count)
    return np.asarray(factor * around + ROUNDINGS * eps * large + (UNIT * eps if bounded else 0.0))


def _neighbours(values: Array) -> Array:
    """The largest along an axis, of the axis along which it is least: the axis of space, not that of channels.

    Axes of a few elements tell little, so only those of at least ``MANY`` count where there are any.
    """
    axes = [k for k, n in enumerate(values.shape) if n >= MANY] or [
        k for k, n in enumerate(values.shape) if n > 1
    ]
    if not axes:
        return values
    largest = [np.broadcast_to(values.max(k, keepdims=True), values.shape) for k in axes]
    return np.asarray(np.minimum.reduce(largest))


def prove(
    exact: Program,
    source: Program,
    graph: Program,
    frames: Iterable[Frame],
    *,
    names: tuple[str, str] = ("source", "graph"),
    half: str | None = None,
    bounded: Collection[str] = (),
    together: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Proof:
    """Stream ``frames`` through all three from their initial states, as :func:`compare` does through two.

    exact, source: one function, in float64 and as it rounds itself; of one Signature. half: the dtype of weights that are
    coarser than float32. bounded: outputs and states that sigmoid, tanh or softmax made.
    together: after every step all begin from the exact states, rounded as the graph stores them; states that only the graph
    has stay its own.
    Raises NotFinite where the source gives no numbers, EdgeLstmError where the two take different frames.
    """
    check_comparable(exact.signature, graph.signature, names)
    block = math.lcm(exact.signature.window or 1, graph.signature.window or 1)
    kinds: Mapping[str, list[str]] = {
        "output": shared_names(
            [t.name for t in exact.signature.outputs], [t.name for t in graph.signature.outputs]
        ),
        "state": shared_names(
            [s.name for s in exact.signature.states], [s.name for s in graph.signature.states]
        ),
    }
    dtypes = {("output", t.name): t.dtype for t in graph.signature.outputs}
    dtypes |= {("state", s.name): s.dtype for s in graph.signature.states}

    def tensor(kind: str, name: str) -> _Tensor:
        eps = max(EPS.get(dtypes[kind, name], EPS32), EPS.get(half or "", 0.0))
        return _Tensor(name, kind, eps, name in bounded)

    outputs, states = ({name: tensor(kind, name) for name in kinds[kind]} for kind in ("output", "state"))
    programs = (exact, source, graph)
    held = [p.new_state() for p in programs]
    done = 0
    pending: list[Frame] = []
    for frame in frames:
        pending.append({name: np.array(value) for name, value in frame.items()} if block > 1 else frame)
        if len(pending) < block:
            continue
        results = [
            advance(p, state, [converted(f, exact.signature, p.signature) for f in pending])
            for p, state in zip(programs, held, strict=True)
        ]
        for offset in range(block):
            for name, t in outputs.items():
                t.add(done + offset, *(result[offset][name] for result in results))
        done += block
        pending.clear()
        values = [state_values(p, state) for p, state in zip(programs, held, strict=True)]
        for name, t in states.items():
            t.add(done - 1, *(value[name] for value in values))
        if together:
            _meet(programs, held, kinds["state"])
        if progress is not None:
            progress(block)
    if not done:
        raise EdgeLstmError(
            "nothing to compare",
            found=f"{count_of(len(pending), 'frame')}",
            expected=f"at least {count_of(block, 'frame')}",
        )
    every = [*outputs.values(), *states.values()]
    comparison = Comparison(names[0], names[1], done, [t.ours for t in every])
    return Proof([t.proof() for t in every], comparison, together)


def _meet(programs: tuple[Program, ...], held: list[Any], names: list[str]) -> None:
    """Set the states ``names`` of all to those of the first, as the last stores them."""
    exact, graph = programs[0], programs[-1]
    now = exact.read_state(held[0], 0)
    stored = {
        s.name: s.stored(now[s.name].astype(np.float32))
        if s.is_coded
        else now[s.name].astype(np.dtype(s.dtype))
        for s in graph.signature.states
        if s.name in names
    }
    worth = {s.name: s.values(stored[s.name]) for s in graph.signature.states if s.name in names}
    for program, state in zip(programs, held, strict=True):
        own = program.read_state(state, 0)
        given = stored if program is graph else worth
        program.write_state(state, 0, {name: given.get(name, value) for name, value in own.items()})
