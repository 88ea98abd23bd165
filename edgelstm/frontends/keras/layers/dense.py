"""Dense and Embedding, BatchNormalization and LayerNormalization."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.activations import read_activation
from edgelstm.frontends.keras.builder import Array, Builder, Value
from edgelstm.frontends.keras.layers.layer import FrameLayer
from edgelstm.frontends.keras.options import Options


class Dense(FrameLayer):
    """activation(x W + b) on the last axis."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.units = options.whole("units")
        self.bias = options.flag("use_bias", True)
        self.activation = read_activation(options, "activation")
        options.off("lora_rank", "no LoRA adapters: merge them in Keras before saving")
        options.off("quantization_config", "float weights: edgelstm quantises after export")
        options.finish("lora_alpha", "input_dim")

    def variables(self) -> tuple[list[str], list[str]]:
        return ["kernel", "bias"] if self.bias else ["kernel"], []

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        inputs = self.features(value)
        kernel = self.weight("kernel", (inputs, self.units))
        bias = [g.constant(self.weight("bias", (self.units,)), f"{place}/bias")] if self.bias else []
        shape = (*value.shape[:-1], self.units)
        places = len(value.shape) - 1
        if not places:
            weight = g.constant(kernel.T, f"{place}/kernel")
            name = g.op("Gemm", [value.name, weight, *bias], f"{place}/z", transB=1)
            return self.activation.apply(g, replace(value, name=name, shape=shape), place)
        if value.perm[1] == len(value.shape) and 1 <= places <= 3:
            # The channels lie first, as convolutions leave them: one place at a time is a convolution too.
            weight = g.constant(kernel.T.reshape(self.units, inputs, *[1] * places), f"{place}/kernel")
            name = g.op("Conv", [value.name, weight, *bias], f"{place}/z", kernel_shape=[1] * places)
            return self.activation.apply(g, replace(value, name=name, shape=shape), place)
        name = g.op("MatMul", [g.plain(value), g.constant(kernel, f"{place}/kernel")], f"{place}/product")
        if bias:
            name = g.op("Add", [name, *bias], f"{place}/z")
        made = replace(value, name=name, shape=shape, perm=tuple(range(len(shape) + 1)))
        return self.activation.apply(g, made, place)

    def apply(self, x: Array) -> Array:
        y = x @ self.weights["kernel"]
        return self.activation.compute(y + self.weights["bias"] if self.bias else y)


class BatchNormalization(FrameLayer):
    """gamma (x - mean) / sqrt(variance + epsilon) + beta, with the mean and variance seen in training (Ioffe & Szegedy 2015)."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        axes = options.axes("axis", -1)
        if len(axes) != 1:
            raise options.error("axis", "one axis")
        self.axis = axes[0]
        self.epsilon = options.number("epsilon", 1e-3)
        self.center, self.scale = options.flag("center", True), options.flag("scale", True)
        options.off("renorm", "no batch renormalisation")
        options.finish("momentum", "synchronized", "fused", "virtual_batch_size", "renorm_momentum")

    def variables(self) -> tuple[list[str], list[str]]:
        own = ["gamma"] if self.scale else []
        return own + (["beta"] if self.center else []), ["moving_mean", "moving_variance"]

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        axis = value.axis(self.axis, self.what)
        size = value.shape[axis - 1]
        wide = {
            name: self.weight(name, (size,)).astype(np.float64) for part in self.variables() for name in part
        }
        scale = wide.get("gamma", np.ones(size)) / self._deviation(wide["moving_variance"])
        shift = wide.get("beta", np.zeros(size)) - wide["moving_mean"] * scale
        shape = [1] * len(value.perm)
        shape[value.physical(axis)] = size
        factor, term = (
            g.constant(v.astype(np.float32).reshape(shape), f"{place}/{name}")
            for name, v in (("scale", scale), ("shift", shift))
        )
        scaled = g.op("Mul", [value.name, factor], f"{place}/scaled")
        return replace(value, name=g.op("Add", [scaled, term], place))

    def apply(self, x: Array) -> Array:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        w = {name: value.reshape(shape) for name, value in self.weights.items()}
        y: Array = x - w["moving_mean"]
        y *= w.get("gamma", 1.0) / self._deviation(w["moving_variance"])
        y += w.get("beta", 0.0)
        return y

    def _deviation(self, variance: Array) -> Array:
        if (variance + self.epsilon <= 0).any():
            raise EdgeLstmError(
                f"{self.what}: weight 'moving_variance'", found="negative", expected="at least 0"
            )
        root: Array = np.sqrt(variance + self.epsilon)
        return root


class LayerNormalization(FrameLayer):
    """gamma (x - mean) / sqrt(variance + epsilon) + beta over the given axes (Ba, Kiros & Hinton 2016)."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.axes = options.axes("axis", -1)
        self.epsilon = options.number("epsilon", 1e-3)
        self.center, self.scale = options.flag("center", True), options.flag("scale", True)
        options.off("rms_scaling", "no RMS scaling")
        options.finish()

    def variables(self) -> tuple[list[str], list[str]]:
        own = ["gamma"] if self.scale else []
        return own + (["beta"] if self.center else []), []

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        axes = sorted({value.axis(axis, self.what) for axis in self.axes})
        sizes = tuple(value.shape[axis - 1] for axis in axes)
        gamma = self.weight("gamma", sizes) if self.scale else np.ones(sizes, np.float32)
        beta = self.weight("beta", sizes) if self.center else np.zeros(sizes, np.float32)
        last = list(range(len(value.shape) + 1))
        # The operator takes the last axes: bring them there.
        perm = (*(a for a in last if a not in axes), *axes)
        scale, shift = g.constant(gamma, f"{place}/gamma"), g.constant(beta, f"{place}/beta")
        name = g.op(
            "LayerNormalization",
            [g.layout(value, perm), scale, shift],
            place,
            axis=-len(axes),
            epsilon=self.epsilon,
        )
        return replace(value, name=name, perm=perm)

    def apply(self, x: Array) -> Array:
        axes = tuple(sorted(axis % x.ndim for axis in self.axes))
        shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
        mean = x.mean(axes, keepdims=True) if x.size else x
        variance = ((x - mean) ** 2).mean(axes, keepdims=True) if x.size else x
        y: Array = (x - mean) / np.sqrt(variance + self.epsilon)
        if self.scale:
            y = y * self.weights["gamma"].reshape(shape)
        return y + self.weights["beta"].reshape(shape) if self.center else y
