"""Which nodes of a step graph form recurrences: those that depend on their own result of an earlier step."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from edgelstm.graph.signature import Signature
from edgelstm.passes.graph import node_inputs


def recurrences(nodes: Sequence[onnx.NodeProto], signature: Signature) -> tuple[list[list[int]], set[int]]:
    """Group the nodes so that each group only needs itself and groups before it, now and in earlier steps.

    Returns the groups, each a list of node indices in graph order, and the indices of the groups that are
    recurrences: strongly connected components of the graph in which every state output leads back to its input
    (Tarjan 1972, without recursion).
    """
    producer = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    for state in signature.states:
        if state.output in producer:
            producer[state.input] = producer[state.output]
    needs = [
        list(dict.fromkeys(producer[name] for name in node_inputs(node) if name in producer))
        for node in nodes
    ]
    groups = _components(needs)
    loops = {k for k, group in enumerate(groups) if len(group) > 1 or group[0] in needs[group[0]]}
    return groups, loops


def _components(needs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strongly connected components, each after all those it needs."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    open_nodes: list[int] = []
    is_open: set[int] = set()
    components: list[list[int]] = []
    for root in range(len(needs)):
        if root in order:
            continue
        path = [(root, iter(needs[root]))]
        order[root] = low[root] = len(order)
        open_nodes.append(root)
        is_open.add(root)
        while path:
            node, rest = path[-1]
            for needed in rest:
                if needed not in order:
                    order[needed] = low[needed] = len(order)
                    open_nodes.append(needed)
                    is_open.add(needed)
                    path.append((needed, iter(needs[needed])))
                    break
                if needed in is_open:
                    low[node] = min(low[node], order[needed])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == order[node]:
                    component = [open_nodes.pop()]
                    while component[-1] != node:
                        component.append(open_nodes.pop())
                    is_open.difference_update(component)
                    components.append(sorted(component))
    return components
