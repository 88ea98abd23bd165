"""Order of nodes: every node after what it reads, and a circle is an error, not a hang."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, helper

from edgelstm.errors import EdgeLstmError
from edgelstm.passes.graph import in_order


def node(name: str, *reads: str) -> NodeProto:
    return helper.make_node("Sum", list(reads), [name])


@given(st.data())
def test_every_node_follows_what_it_reads(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    nodes = [
        node(f"v{k}", *(f"v{j}" for j in data.draw(st.sets(st.integers(0, k - 1)) if k else st.just(set()))))
        for k in range(count)
    ]
    shuffled = list(nodes)
    random.Random(data.draw(st.integers(0, 99))).shuffle(shuffled)
    seen: set[str] = set()
    for n in in_order(shuffled):
        assert set(n.input) <= seen
        seen |= set(n.output)
    assert len(seen) == count
    assert in_order(nodes) == nodes


@pytest.mark.parametrize(
    "nodes",
    [
        [node("a", "a")],
        [node("a", "b"), node("b", "a")],
        [node("x"), node("a", "x", "c"), node("b", "a"), node("c", "b", "x")],
    ],
)
def test_a_circle_is_an_error(nodes: list[NodeProto]) -> None:
    with pytest.raises(EdgeLstmError, match="the graph runs in a circle"):
        in_order(nodes)
