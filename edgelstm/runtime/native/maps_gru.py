"""ConvGRU cells on maps: the equations of a GRU (gru.py) with convolutions of 3x3 in place of products, of the kind that our operator
computes (maps.py). RobustVideoMatting's cells are such, and those of radar forecasts."""

from __future__ import annotations

import numpy as np

from edgelstm.runtime.native.gru import find_cell
from edgelstm.runtime.native.linear import Linear, Links
from edgelstm.runtime.native.maps import DOMAIN, keeps_size, of_size, pays
from edgelstm.runtime.native.wire import Attribute, Node


class _Maps(Links):
    """Sums of convolutions as sums of products: a channel's 3x3 are nine columns. Shares all that it knows with ``links``."""

    axes, taps = (1, -3), 9

    def __init__(self, links: Links) -> None:
        vars(self).update(vars(links))

    def gemm(self, value: str) -> None:
        """There are none."""

    def too_large(self, weights: int) -> bool:
        """The operator is as fast for many streams as for one."""
        return False

    def linear(self, value: str, widths: dict[str, int]) -> Linear | None:
        """A value [N, rows, height, width] as a sum of convolutions."""
        node = self.producers.get(value)
        if node is None or node.op not in ("Conv", "Split", "Add"):
            return None
        if (conv := self.producer(value, "Conv")) is not None:
            weight = self.constants.get(conv.inputs[1])
            if weight is None or weight.shape[2:] != (3, 3) or not keeps_size(conv):
                return None
            bias = np.zeros(len(weight), np.float32)
            if len(conv.inputs) > 2 and conv.inputs[2]:
                if conv.inputs[2] not in self.constants:
                    return None
                bias = self.constants[conv.inputs[2]].reshape(-1)
            parts = self._parts(conv.inputs[0], weight.reshape(len(weight), -1), widths)
            return None if parts is None else Linear(parts, bias)
        if (add := self.producer(value, "Add")) is not None:
            for one, other in (add.inputs, add.inputs[::-1]):
                constant = self.constants.get(other)
                if constant is None:
                    continue
                found = self.linear(one, widths)
                if (
                    found is None
                    or constant.shape[-3:] != (len(found.bias), 1, 1)
                    or constant.size != len(found.bias)
                ):
                    return None
                return Linear(found.weights, found.bias + constant.reshape(-1))
        return super().linear(value, widths)


def find_conv_gru(links: Links, node: Node) -> Node | None:
    """The FusedConvGRUCell that gives the same as the Add ``node``; None where it is no h', or it would not pay."""
    cell = find_cell(_Maps(links), node)
    name = f"{node.outputs[0]}/edgelstm."
    if cell is None or f"{name}B" in links.graph.tensors:
        return None
    h, units = cell.h, len(cell.bias[0])
    while (before := links.producers.get(h)) is not None and before.op == "FusedConvGRUCell":
        h = before.inputs[1]
    sizes = links.graph.input_sizes.get(h)
    channels = (cell.weight.shape[1] + cell.recurrent.shape[1]) // _Maps.taps
    if sizes is None or len(sizes) != 4 or sizes[1] != units or not pays(units, channels, *sizes[2:]):
        return None
    if not of_size(links, cell.x, sizes):
        return None
    links.graph.add_floats(f"{name}B", np.concatenate(cell.bias))
    attributes: dict[str, Attribute] = {
        **cell.attributes,
        "lent_w": links.lend(f"{name}W", cell.weight),
        "lent_r": links.lend(f"{name}R", cell.recurrent),
    }
    return Node("FusedConvGRUCell", [cell.x, cell.h, "", "", f"{name}B"], node.outputs, DOMAIN, attributes)
