"""Attention inside a window: Attention (Luong), AdditiveAttention (Bahdanau), MultiHeadAttention (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.activations import Activation
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value
from edgelstm.frontends.keras.calls import Slot
from edgelstm.frontends.keras.layers.layer import Layer, Memory, Tensor
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.options import Options, is_off

#: What Keras takes from scores that a mask hides.
_HIDDEN = -1e9


class Bindable(Layer):
    """A layer whose calls have arguments of their own: ``bind`` makes a layer of each."""

    @abstractmethod
    def bind(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Layer, list[Slot]]:
        """The layer of one call, and the tensors it takes. Raises EdgeLstmError for arguments it does not know."""

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        raise self._unbound()

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        raise self._unbound()

    def _unbound(self) -> EdgeLstmError:
        return EdgeLstmError(
            f"{self.what} inside another layer", expected="a call of its own, with its query and value"
        )


class _Attending(Bindable):
    """Query, value, key: what all three share."""

    #: Of a call, in order; tensors first.
    parameters: ClassVar[tuple[str, ...]] = ("query", "value", "key")

    def tensors(self, args: Sequence[Any]) -> list[Any]:
        """Query, value and key as the call gives them."""
        return list(args)

    def bind(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Layer, list[Slot]]:
        given = dict(zip(self.parameters, self.tensors(args), strict=False))
        given |= {k: v for k, v in keywords.items() if k in self.parameters}
        flags = {"use_causal_mask": False, "return_attention_scores": False}
        for key, value in keywords.items():
            if key in flags and isinstance(value, bool | None):
                flags[key] = bool(value)
            elif key not in self.parameters and not is_off(value):
                raise EdgeLstmError(
                    f"{self.what} is called with {key!r}", found=str(value)[:80], expected=", ".join(flags)
                )
        slots = [v for v in given.values() if v is not None]
        if len(slots) < 2 or not all(isinstance(s, Slot) for s in slots):
            raise EdgeLstmError(
                f"{self.what}: what it is called with", expected="query, value, and a key or none"
            )
        call = AttentionCall(self, flags["use_causal_mask"], flags["return_attention_scores"])
        return call, slots

    @abstractmethod
    def scores(self, g: Builder, q: Value, k: Value, place: str) -> str:
        """Emit the scores [N, (heads,) Tq, Tv]."""

    @abstractmethod
    def score(self, q: Array, k: Array) -> Array:
        """The same by NumPy."""

    def project(self, g: Builder, values: Sequence[Value], place: str) -> list[Value]:
        """Query, value and key as the scores take them."""
        return list(values)

    def projected(self, arrays: Sequence[Array]) -> list[Array]:
        """The same by NumPy."""
        return list(arrays)

    def result(self, g: Builder, y: str, q: Value, v: Value, place: str) -> Value:
        """The output of the weighted values ``y``."""
        return Value(y, (q.shape[0], v.shape[1]))

    def finished(self, y: Array) -> Array:
        """The same by NumPy."""
        return y


class AttentionCall(Layer):
    """One call of an attention layer: softmax(scores) values, and the weights where they are asked for."""

    def __init__(self, layer: _Attending, causal: bool, scores: bool) -> None:
        super().__init__(layer.options)
        self.layer, self.causal, self.scores = layer, causal, scores
        self.keeps_time = True

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        if any(v.time is not None for v in inputs):
            raise NeedsWindow(f"{self.what} attends to whole sequences")
        if any(v.mask is not None for v in inputs):
            raise EdgeLstmError(f"{self.what} takes masked sequences", expected="no Masking before attention")
        if any(len(v.shape) != 2 for v in inputs):
            raise EdgeLstmError(
                f"{self.what}: what comes in",
                found=[list(v.shape) for v in inputs],
                expected="sequences [N, T, features]",
            )
        query, value, key = (*inputs, inputs[1])[:3]
        if value.shape[0] != key.shape[0]:
            raise EdgeLstmError(
                f"{self.what}: key", found=list(key.shape), expected=f"{count_of(value.shape[0], 'element')}"
            )
        q, v, k = self.layer.project(g, (query, value, key), place)
        scores = self.layer.scores(g, q, k, place)
        if self.causal:
            hidden = self.hidden(query.shape[0], value.shape[0]).astype(np.float32)
            scores = g.op("Add", [scores, g.constant(hidden, f"{place}/causal")], f"{place}/masked")
        weights = g.op("Softmax", [scores], f"{place}/weights", axis=-1)
        y = g.op("MatMul", [weights, g.plain(v)], f"{place}/attended")
        ready = max(x.ready for x in inputs)
        made = self.layer.result(g, y, query, v, place)
        shape = (*v.shape[:-2], query.shape[0], value.shape[0])
        whole = [made, Value(weights, shape)] if self.scores else [made]
        return [
            Value(x.name, x.shape, sequence=query.sequence and not k, ready=ready)
            for k, x in enumerate(whole)
        ]

    def hidden(self, queries: int, values: int) -> Array:
        """What is added to the scores of a causal mask: query t sees values 0 to t."""
        later = np.arange(values) > np.arange(queries)[:, None]
        return np.where(later, _HIDDEN, 0.0)

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        query, value, key = (*inputs, inputs[1])[:3]
        q, v, k = self.layer.projected([query.data, value.data, key.data])
        scores = self.layer.score(q, k)
        if self.causal:
            scores = scores + self.hidden(*scores.shape[-2:])
        weights = Activation("softmax").compute(scores)
        begun = all(x.begun for x in inputs)
        made = Tensor(self.layer.finished(weights @ v), sequence=query.sequence, begun=begun)
        return [made, Tensor(weights, begun=begun)] if self.scores else [made]


class Attention(_Attending):
    """Scores q . k, or w sum(tanh(scale (q + k))) with ``score_mode="concat"``; AdditiveAttention: sum(scale tanh(q + k))."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.additive = options.kind == "AdditiveAttention"
        self.scaled = options.flag("use_scale", self.additive)
        modes = ("dot", "concat")
        self.concat = not self.additive and options.choice("score_mode", modes, "dot") == "concat"
        options.finish("dropout", "causal")
        if options.get("causal"):
            raise options.error("causal", "False", hint="Call it with use_causal_mask=True")

    def variables(self) -> tuple[list[str], list[str]]:
        return (["scale"] if self.scaled else []) + (["concat_score_weight"] if self.concat else []), []

    def tensors(self, args: Sequence[Any]) -> list[Any]:
        return list(args[0]) if args and isinstance(args[0], list) else list(args)

    def scores(self, g: Builder, q: Value, k: Value, place: str) -> str:
        features = q.shape[1]
        if k.shape[1] != features:
            raise EdgeLstmError(f"{self.what}: key", found=list(k.shape), expected=f"{features} features")
        scale = None
        if self.scaled:
            scale = g.constant(self.weight("scale", (features,) if self.additive else ()), f"{place}/scale")
        if not (self.additive or self.concat):
            y = g.op("MatMul", [g.plain(q), g.layout(k, (0, 2, 1))], f"{place}/scores")
            return y if scale is None else g.op("Mul", [y, scale], f"{place}/scaled")
        q_wide = g.op("Unsqueeze", [g.plain(q), g.integers([2])], f"{place}/queries")
        k_wide = g.op("Unsqueeze", [g.plain(k), g.integers([1])], f"{place}/keys")
        total = g.op("Add", [q_wide, k_wide], f"{place}/sums")
        if self.concat and scale is not None:
            total = g.op("Mul", [total, scale], f"{place}/scaled")
        total = g.op("Tanh", [total], f"{place}/tanh")
        if self.additive and scale is not None:
            total = g.op("Mul", [total, scale], f"{place}/scaled")
        y = g.op("ReduceSum", [total, g.integers([3])], f"{place}/scores", keepdims=0)
        if not self.concat:
            return y
        weight = g.constant(self.weight("concat_score_weight", ()), f"{place}/weight")
        return g.op("Mul", [y, weight], f"{place}/weighted")

    def score(self, q: Array, k: Array) -> Array:
        scale = self.weights.get("scale", 1.0)
        if not (self.additive or self.concat):
            y: Array = q @ k.swapaxes(-1, -2) * scale
            return y
        total = q[:, :, None] + k[:, None]
        if self.additive:
            summed: Array = (np.tanh(total) * scale).sum(-1)
            return summed
        weighted: Array = np.tanh(total * scale).sum(-1) * self.weights["concat_score_weight"]
        return weighted


class _Projection(Weighted):
    """x W + b over the features, to [heads, size] or from it."""

    def __init__(self, options: Options, biased: bool) -> None:
        super().__init__(options)
        self.biased = biased

    def variables(self) -> tuple[list[str], list[str]]:
        return ["kernel", *(["bias"] if self.biased else [])], []

    def emitted(
        self, g: Builder, x: str, kernel: tuple[int, ...], biases: tuple[int, ...], place: str
    ) -> str:
        """x [N, T, F] times the kernel as a matrix of as many columns as there are biases; [*biases] is their shape."""
        weight = self.weight("kernel", kernel).reshape(-1, math.prod(biases))
        y = g.op("MatMul", [x, g.constant(weight, f"{place}/kernel")], f"{place}/product")
        if not self.biased:
            return y
        bias = self.weight("bias", biases)
        return g.op("Add", [y, g.constant(bias.reshape(-1), f"{place}/bias")], place)


class MultiHeadAttention(_Attending):
    """Heads side by side, each with projections of its own; along time alone."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.heads = options.whole("num_heads")
        self.size = options.whole("key_dim")
        self.value_size = options.whole("value_dim") if options.get("value_dim") else self.size
        biased = options.flag("use_bias", True)
        axes = options.get("attention_axes")
        if axes not in (None, 1, [1], (1,)):
            raise options.error("attention_axes", "1: time")
        shape = options.get("output_shape")
        self.outputs = None if shape is None else options.sizes("output_shape", 1)[0]
        options.off("use_gate", "no gate")
        options.off("sliding_window", "no sliding window")
        options.finish("dropout", "query_shape", "key_shape", "value_shape", "flash_attention")
        self.parts = {
            name: _Projection(Options(options.source, f"{options.path}/{name}", "EinsumDense", {}), biased)
            for name in ("query_dense", "key_dense", "value_dense", "output_dense")
        }
        for part in self.parts.values():
            part.trainable = self.trainable

    def children(self) -> list[tuple[str, Weighted]]:
        return list(self.parts.items())

    def project(self, g: Builder, values: Sequence[Value], place: str) -> list[Value]:
        made = []
        for value, name in zip(values, ("query", "value", "key"), strict=True):
            size = self.value_size if name == "value" else self.size
            steps, features = value.shape
            heads, under = (self.heads, size), f"{place}/{name}"
            y = self.parts[f"{name}_dense"].emitted(g, g.plain(value), (features, *heads), heads, under)
            y = g.reshape(y, [steps, self.heads, size], f"{under}/heads")
            y = g.op("Transpose", [y], f"{under}/apart", perm=[0, 2, 1, 3])
            made.append(Value(y, (self.heads, steps, size)))
        return made

    def scores(self, g: Builder, q: Value, k: Value, place: str) -> str:
        y = g.op("MatMul", [q.name, g.layout(k, (0, 1, 3, 2))], f"{place}/scores")
        return g.op("Mul", [y, g.number(1 / math.sqrt(self.size))], f"{place}/scaled")

    def score(self, q: Array, k: Array) -> Array:
        y: Array = q @ k.swapaxes(-1, -2) / math.sqrt(self.size)
        return y

    def projected(self, arrays: Sequence[Array]) -> list[Array]:
        made = []
        for x, name in zip(arrays, ("query", "value", "key"), strict=True):
            weights = self.parts[f"{name}_dense"].weights
            y = np.einsum("btf,fhk->bhtk", x, weights["kernel"], optimize=True)
            made.append(y + weights["bias"][:, None] if "bias" in weights else y)
        return made

    def result(self, g: Builder, y: str, q: Value, v: Value, place: str) -> Value:
        steps, features = q.shape
        outputs = features if self.outputs is None else self.outputs
        together = g.op("Transpose", [y], f"{place}/together", perm=[0, 2, 1, 3])
        joined = g.reshape(together, [steps, self.heads * self.value_size], f"{place}/joined")
        kernel = (self.heads, self.value_size, outputs)
        return Value(
            self.parts["output_dense"].emitted(g, joined, kernel, (outputs,), place), (steps, outputs)
        )

    def finished(self, y: Array) -> Array:
        weights = self.parts["output_dense"].weights
        z: Array = np.einsum("bhtv,hvo->bto", y, weights["kernel"], optimize=True)
        return z + weights.get("bias", 0.0)
