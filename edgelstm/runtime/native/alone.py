"""Each of our operators alone, on what it reads in the graph as it stands.

Where values are rounded to codes, two right computations may differ: what lies near the middle between two codes becomes either, and
what is made of it moves by some. Over a whole step that can't be told from a fault that is small or rare. One operator that reads
the same values can: what it gives before a rounding has to be the same, and a code may be another only where that value lies near a tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgelstm.runtime.native.session import ELEMENTS
from edgelstm.runtime.native.wire import Node, OnnxGraph
from edgelstm.runtime.protocol import Array

FUNCTIONS = "FusedGates_"
#: How far numbers may lie apart, relative to the largest: both round in float32.
APART = 1e-4
#: A pre-activation nearer than this to the middle between two codes, in codes, may become either: it is a sum in float32 of up to some
#: thousand products, by Winograd's algorithm on one side.
TIE = 2e-3
#: How many results may hang on such a pre-activation. Four gates make it 1.6% where codes are spread evenly.
MOST_NEAR = 0.1
PREFIX = "edgelstm.alone/"


class Alone:
    """data: the graph as it stands. rewritten: with our operators in it."""

    def __init__(self, data: bytes, rewritten: bytes) -> None:
        self._graph, self._rewritten = OnnxGraph(data), OnnxGraph(rewritten)
        graph = self._graph
        self._producers = {name: node for node in graph.nodes for name in node.outputs if name}
        self._known = self._producers.keys() | graph.inputs.keys()
        self._ours = [
            node
            for node in self._rewritten.nodes
            if node.domain == "edgelstm" and not node.op.startswith(FUNCTIONS)
        ]
        wanted = {
            name
            for node in self._ours
            for name in (*node.inputs, *node.outputs)
            if name and name in self._known and not self._is_constant(name)
        }
        for node in self._ours:
            wanted |= {
                rounded.inputs[0]
                for name in (*node.outputs, self._gate_codes(node))
                if (rounded := self._rounded(name)) is not None
            }
        #: Whether some operator rounds pre-activations to codes itself.
        self.rounds = any(map(self._gate_codes, self._ours))
        #: What they give that the graph as it stands has too.
        self.outputs = {n for node in self._ours for n in node.outputs if n in self._known}
        #: What has to be known of the graph as it stands, besides what it gives.
        self.taps = sorted(wanted - graph.outputs - graph.inputs.keys())

    def tapped(self) -> bytes:
        """The graph as it stands, with the taps among its outputs."""
        self._graph.give(self.taps)
        return self._graph.encode("edgelstm", 1)

    def graph(self, values: Mapping[str, Array]) -> tuple[bytes, dict[str, Array], dict[str, str]]:
        """A graph of our operators side by side, what it is fed of ``values``, and its outputs by what they are called in those."""
        read = {
            n for node in self._ours for n in node.inputs if n in self._known and not self._is_constant(n)
        }
        feeds = {name: values[name] for name in sorted(read)}
        outputs = {name: f"{PREFIX}{name}" for name in self.outputs}
        nodes = [
            replace(node, outputs=[outputs.get(n, n) for n in node.outputs], data=None) for node in self._ours
        ]
        types = {name: ELEMENTS[str(array.dtype)] for name, array in feeds.items()}
        return self._rewritten.part(nodes, types, outputs.values()), feeds, outputs

    def trouble(self, values: Mapping[str, Array], found: Mapping[str, Array]) -> str | None:
        """None if what our operators give (by name) is what ``values`` are, else what differs."""
        for node in self._ours:
            for name in (n for n in node.outputs if n in found):
                expected, got = values[name], found[name]
                if expected.shape != got.shape or expected.dtype != got.dtype:
                    return f"{node.op} alone gives {name}: {got.dtype}{list(got.shape)}, expected {expected.dtype}{list(expected.shape)}"
                wrong = self._wrong(name, values, got)
                near = self._near(node, values) if wrong.any() else None
                if near is not None:
                    if near.shape != wrong.shape or near.sum() > MOST_NEAR * near.size:
                        return f"{node.op} alone: {int(near.sum())} of {near.size} pre-activations of {name} lie between two codes"
                    wrong &= ~near
                if wrong.any():
                    return f"{node.op} alone gives {name}: {int(wrong.sum())} of {wrong.size} values differ"
        return None

    def _wrong(self, name: str, values: Mapping[str, Array], got: Array) -> Array:
        """Where a result is another than it may be."""
        expected: Array = values[name]
        if np.array_equal(expected, got):
            return np.zeros(got.shape, bool)
        rounded = self._rounded(name)
        if got.dtype.kind in "iu" and rounded is not None:
            x = values[rounded.inputs[0]]
            exact = self._in_codes(rounded, x)
            limits = np.iinfo(got.dtype)
            lost = APART * max(1.0, _largest(x)) / float(np.min(self._scale(rounded)))
            with np.errstate(invalid="ignore"):
                off: Array = np.abs(np.clip(exact, limits.min, limits.max) - got) > 0.5 + lost
            return np.where(np.isfinite(x), off, expected != got)
        apart = APART * max(1.0, _largest(expected))
        with np.errstate(invalid="ignore"):
            wrong: Array = ~(np.abs(got.astype(np.float32) - expected) <= apart)
        if wrong.any():  # infinity and NaN as they are
            wrong &= (got != expected) & ~(np.isnan(got) & np.isnan(expected))
        return wrong

    def _near(self, node: Node, values: Mapping[str, Array]) -> Array | None:
        """Where some gate's pre-activation lies near the middle between two codes, if this operator makes codes of them."""
        rounded = self._rounded(self._gate_codes(node))
        if rounded is None:
            return None
        exact = self._in_codes(rounded, values[rounded.inputs[0]])
        units = values[next(n for n in node.outputs if n in values)].shape[1]
        with np.errstate(invalid="ignore"):
            far: Array = np.abs(exact - np.floor(exact) - 0.5) >= TIE
        near: Array = ~np.all(far.reshape(len(far), -1, units, *far.shape[2:]), axis=1)
        return near

    def _gate_codes(self, node: Node) -> str:
        """The value of the graph as it stands that is the pre-activations' codes, if this operator makes them; else ""."""
        gates = next((self._producers[n] for n in node.outputs[:2] if n in self._producers), None)
        return gates.inputs[0] if gates is not None and node.attributes.get("rounded") else ""

    def _rounded(self, name: str) -> Node | None:
        """The QuantizeLinear with constants that makes a value."""
        node = self._producers.get(name)
        if node is None or (node.domain, node.op) != ("", "QuantizeLinear"):
            return None
        return node if all(self._is_constant(n) for n in node.inputs[1:] if n) else None

    def _scale(self, rounded: Node) -> Array:
        scale = self._graph.tensors[rounded.inputs[1]].floats()
        assert scale is not None
        return scale

    def _in_codes(self, rounded: Node, x: Array) -> Array:
        """What a QuantizeLinear rounds, in codes."""
        scale, zero = self._scale(rounded), np.zeros(1, np.float32)
        if len(rounded.inputs) > 2 and rounded.inputs[2]:
            tensor = self._graph.tensors[rounded.inputs[2]]
            zero = np.frombuffer(tensor.raw or b"", {2: "u1", 3: "i1"}[tensor.dtype]).astype(np.float32)
        shape = [-1, *[1] * (x.ndim - 2)]
        return x / scale.reshape(shape) + zero.reshape(shape)

    def _is_constant(self, name: str) -> bool:
        return name in self._graph.tensors and name not in self._graph.inputs


def _largest(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
