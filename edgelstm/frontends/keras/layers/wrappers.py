"""Layers around layers: TimeDistributed, Bidirectional; and Masking, which recurrent layers heed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.builder import Builder, NeedsWindow, Value
from edgelstm.frontends.keras.layers.cells import CELLS
from edgelstm.frontends.keras.layers.layer import FrameLayer, Layer, Memory, Tensor
from edgelstm.frontends.keras.layers.recurrent import Recurrent
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.options import Options

MakeLayer = Callable[[Options, str, Mapping[str, Any]], Layer]


class TimeDistributed(Layer):
    """A layer, or a whole model, on every frame alone."""

    is_temporal = True

    def __init__(self, options: Options, make: MakeLayer) -> None:
        super().__init__(options)
        inner = options.get("layer")
        if not isinstance(inner, dict):
            raise options.error("layer", "the configuration of a layer")
        self.layer = make(options, "layer", inner)
        options.finish()

    def children(self) -> list[tuple[str, Weighted]]:
        return [("layer", self.layer)]

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        x: Value = self.single(inputs)
        if x.time is not None:
            inner = replace(x, time=None, mask=None)
            return [
                replace(y, time=x.time, mask=x.mask, ready=0)
                for y in self.layer.emit(g, [inner], f"{place}/{self.layer.name}")
            ]
        if len(x.shape) < 2:
            raise EdgeLstmError(
                f"{self.what}: what comes in", found=f"shape {list(x.shape)}", expected="a sequence"
            )
        steps, frame = x.shape[0], x.shape[1:]
        # Time folds into the streams where it lies beside them.
        perm = x.perm if x.perm[1] == 1 else tuple(range(len(x.shape) + 1))
        folded = tuple(axis - 1 if axis else 0 for k, axis in enumerate(perm) if k != 1)
        physical = [frame[axis - 1] for axis in folded[1:]]
        name = g.reshape(g.layout(x, perm), physical, f"{place}/folded")
        made = []
        outer, g.rows_are_streams = g.rows_are_streams, False
        found = self.layer.emit(g, [Value(name, frame, None, folded)], f"{place}/{self.layer.name}")
        g.rows_are_streams = outer
        for y in found:
            sizes = [y.shape[axis - 1] for axis in y.perm[1:]]
            whole = g.reshape(y.name, [steps, *sizes], f"{place}/unfolded")
            perm_y = (0, 1, *(axis + 1 for axis in y.perm[1:]))
            if y.dtype == "float32":
                g.noted(whole, (steps, *sizes))
            made.append(Value(whole, (steps, *y.shape), None, perm_y, x.mask, x.sequence, x.ready, y.dtype))
        return made

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x: Tensor = self.single(inputs)
        rows, steps = x.data.shape[:2]
        if not rows * steps:
            # The layer is asked what its result looks like.
            probe = Tensor(np.zeros((1, *x.data.shape[2:]), x.data.dtype))
            made = self.layer.compute([probe], f"{place}/{self.layer.name}", {})
            return [replace(x, data=np.zeros((rows, 0, *y.data.shape[1:]), x.data.dtype)) for y in made]
        folded = Tensor(x.data.reshape(-1, *x.data.shape[2:]))
        made = self.layer.compute([folded], f"{place}/{self.layer.name}", {})
        return [replace(x, data=y.data.reshape(rows, steps, *y.data.shape[1:])) for y in made]


_MERGE_OPS = {"sum": "Add", "ave": "Add", "mul": "Mul"}


class Bidirectional(Layer):
    """One layer forwards, one backwards in time (Schuster & Paliwal 1997): it needs the whole sequence."""

    is_temporal = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        inner = options.get("layer")
        if not isinstance(inner, dict):
            raise options.error("layer", "the configuration of a recurrent layer")
        second = options.get("backward_layer") or inner
        self.forward = self._layer(options, inner, "forward", turned=False)
        self.backward = self._layer(options, second, "backward", turned=second is inner)
        self.mode = options.get("merge_mode", "concat")
        if self.mode not in ("concat", "sum", "ave", "mul", None):
            raise options.error("merge_mode", "concat, sum, ave, mul or None")
        options.finish("return_sequences", "stateful", "return_state")
        for layer in (self.forward, self.backward):
            layer.zero_masked = layer.sequences
        if self.forward.sequences != self.backward.sequences or self.forward.states != self.backward.states:
            raise options.error("layer", "two layers that return the same", found="different ones")

    def _layer(self, options: Options, given: Any, side: str, *, turned: bool) -> Recurrent:
        config = given.get("config") if isinstance(given, dict) else None
        kind = given.get("class_name") if isinstance(given, dict) else None
        if not isinstance(config, dict) or kind not in (*CELLS, "RNN"):
            raise options.error("layer", "LSTM, GRU, SimpleRNN, RNN or ConvLSTM", found=kind)
        backwards = not config.get("go_backwards", False) if turned else config.get("go_backwards", False)
        config = {**config, "go_backwards": backwards}
        inner = Options(options.source, f"{options.path}/{side}_layer", str(kind), config)
        return Recurrent(inner, backwards=True)

    def children(self) -> list[tuple[str, Weighted]]:
        return [("forward_layer", self.forward), ("backward_layer", self.backward)]

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        if inputs[0].time is not None:
            raise NeedsWindow(f"{self.what} also runs backwards from the last frame")
        half = len(inputs[1:]) // 2
        ahead = self.forward.emit(g, [inputs[0], *inputs[1 : 1 + half]], f"{place}.forward")
        back = self.backward.emit(g, [inputs[0], *inputs[1 + half :]], f"{place}.backward")
        y, z = ahead[0], back[0]
        if self.forward.sequences:
            z = replace(z, name=self._turned(g, z, place))
        ends = [*ahead[1:], *back[1:]]
        if self.mode is None:
            return [y, z, *ends]
        if self.mode == "concat":
            last = len(y.shape)
            name = g.op("Concat", [y.name, z.name], place, axis=y.physical(last))
            return [replace(y, name=name, shape=(*y.shape[:-1], y.shape[-1] + z.shape[-1])), *ends]
        name = g.op(_MERGE_OPS[self.mode], [y.name, z.name], place)
        if self.mode == "ave":
            name = g.op("Mul", [name, g.number(0.5)], f"{place}/mean")
        return [replace(y, name=name), *ends]

    def _turned(self, g: Builder, value: Value, place: str) -> str:
        order = g.integers(list(range(value.shape[0]))[::-1], "backwards")
        return g.op("Gather", [value.name, order], f"{place}/turned", axis=1)

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        half = len(inputs[1:]) // 2
        ahead = self.forward.compute([inputs[0], *inputs[1 : 1 + half]], f"{place}.forward", memory)
        back = self.backward.compute([inputs[0], *inputs[1 + half :]], f"{place}.backward", memory)
        y, z = ahead[0].data, back[0].data
        if self.forward.sequences:
            z = z[:, ::-1]
        ends = [*ahead[1:], *back[1:]]
        if self.mode is None:
            return [replace(ahead[0], data=y), replace(ahead[0], data=z), *ends]
        if self.mode == "concat":
            merged = np.concatenate([y, z], -1)
        elif self.mode == "mul":
            merged = y * z
        else:
            merged = (y + z) / (2 if self.mode == "ave" else 1)
        return [replace(ahead[0], data=merged), *ends]


class Masking(FrameLayer):
    """Frames whose every number is ``mask_value`` are zeroed, and passed over by the recurrent layers behind."""

    is_temporal = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.value = options.number("mask_value", 0.0)
        options.finish()

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        x: Value = self.single(inputs)
        if len(x.shape) != (1 if x.time is not None else 2):
            raise EdgeLstmError(
                f"{self.what}: what comes in",
                found=f"{count_of(x.rank, 'axis', 'axes')}",
                expected="3: streams, time, features",
            )
        same = g.op("Equal", [x.name, g.number(self.value)], f"{place}/equal")
        other = g.op("Cast", [g.op("Not", [same], f"{place}/other")], f"{place}/number", to=1)
        last = g.integers([len(x.shape)])
        any_other = g.op("ReduceMax", [other, last], f"{place}/any", keepdims=1)
        zeroed = g.op("Mul", [x.name, any_other], place)
        mask = g.op("Cast", [any_other], f"{place}/mask", to=9)
        if x.time is None:
            mask = g.reshape(mask, [x.shape[0]], f"{place}/masks")
        return [replace(x, name=zeroed, mask=mask)]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x: Tensor = self.single(inputs)
        mask = (x.data != self.value).any(-1)
        return [replace(x, data=x.data * mask[..., None], mask=mask)]
