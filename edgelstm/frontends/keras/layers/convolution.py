"""Conv1D/2D/3D, depthwise and separable convolutions, and the transposed ones. Kernels are [*k, inputs, outputs]."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras import arithmetic
from edgelstm.frontends.keras.activations import read_activation
from edgelstm.frontends.keras.builder import Array, Builder, Shape, Value, channels_first
from edgelstm.frontends.keras.layers.layer import FrameLayer
from edgelstm.frontends.keras.layers.windowed import Field, Pads, WindowLayer
from edgelstm.frontends.keras.options import Options


def rank_of(kind: str) -> int:
    """3 of Conv3D."""
    return int(kind.replace("Transpose", "")[-2])


class Convolution(WindowLayer):
    """activation(x * kernel + bias): a cross-correlation, in groups where asked for."""

    def __init__(self, options: Options) -> None:
        super().__init__(options, rank_of(options.kind))
        rank = self.rank
        self.read_window(options)
        self.groups = options.whole("groups", 1)
        self.filters = self.read_filters(options)
        self.bias = options.flag("use_bias", True)
        self.activation = read_activation(options, "activation")
        options.off("lora_rank", "no LoRA adapters: merge them in Keras before saving")
        options.off("quantization_config", "float weights: edgelstm quantises after export")
        options.finish("lora_alpha")
        if rank > 1 and self.padding == "causal":
            raise options.error("padding", "valid or same")

    def read_window(self, options: Options) -> None:
        """Kernel, strides, dilation and padding."""
        self.sizes = options.sizes("kernel_size", self.rank)
        self.strides = options.sizes("strides", self.rank, 1)
        self.dilation = options.sizes("dilation_rate", self.rank, 1)
        self.padding = options.choice("padding", ("valid", "same", "causal"), "valid")

    def read_filters(self, options: Options) -> int:
        """How many maps come out."""
        return options.whole("filters")

    @property
    def kernel_name(self) -> str:
        """Keras's name of the kernel."""
        return "kernel"

    def variables(self) -> tuple[list[str], list[str]]:
        return ["kernel", *(["bias"] if self.bias else [])], []

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        field = self.open(g, value, place)
        outputs, name = self.product(g, field, place)
        made = self.close(field, name, outputs, value, g, place)
        return self.activation.apply(g, made, place)

    def product(self, g: Builder, field: Field, place: str) -> tuple[int, str]:
        """The convolution with its bias: how many maps, and the value."""
        if field.channels % self.groups or self.filters % self.groups:
            raise EdgeLstmError(
                f"{self.what}: groups",
                found=f"{self.groups} for {count_of(field.channels, 'input')} and {count_of(self.filters, 'output')}",
                expected="a divisor of both",
            )
        kernel = self.weight("kernel", (*self.sizes, field.channels // self.groups, self.filters))
        weight = kernel.transpose(self.rank + 1, self.rank, *range(self.rank))
        return self.filters, self.convolve(g, field, weight, self.filters, self.groups, place)

    def convolve(
        self,
        g: Builder,
        field: Field,
        weight: Array,
        outputs: int,
        groups: int,
        place: str,
        *,
        biased: bool = True,
    ) -> str:
        """ONNX's Conv with this layer's window."""
        inputs = [field.name, g.constant(np.ascontiguousarray(weight), f"{place}/kernel")]
        if self.bias and biased:
            inputs.append(g.constant(self.weight("bias", (outputs,)), f"{place}/bias"))
        return g.op(
            "Conv",
            inputs,
            f"{place}/z",
            dilations=list(self.dilation),
            group=groups,
            **self.attributes(field),
        )

    def windows(self, x: Array, pads: Pads) -> Array:
        y = arithmetic.conv(
            x,
            self.weights["kernel"],
            strides=self.strides,
            dilation=self.dilation,
            padding=pads,
            groups=self.groups,
        )
        return self.finished(y)

    def finished(self, y: Array) -> Array:
        """Bias and activation; channels last."""
        return self.activation.compute(y + self.weights["bias"] if self.bias else y)


class Depthwise(Convolution):
    """``depth_multiplier`` filters for each channel alone."""

    def read_filters(self, options: Options) -> int:
        self.multiplier = options.whole("depth_multiplier", 1)
        options.get("filters")
        return self.multiplier

    def product(self, g: Builder, field: Field, place: str) -> tuple[int, str]:
        channels, filters = field.channels, self.multiplier
        kernel = self.weight("kernel", (*self.sizes, channels, filters))
        outputs = channels * filters
        weight = kernel.reshape(*self.sizes, 1, outputs).transpose(
            self.rank + 1, self.rank, *range(self.rank)
        )
        return outputs, self.convolve(g, field, weight, outputs, channels, place)

    def windows(self, x: Array, pads: Pads) -> Array:
        y = arithmetic.depthwise(
            x, self.weights["kernel"], strides=self.strides, dilation=self.dilation, padding=pads
        )
        return self.finished(y)


class Separable(Convolution):
    """A depthwise convolution, then one of a single place over all its channels."""

    def read_filters(self, options: Options) -> int:
        self.multiplier = options.whole("depth_multiplier", 1)
        return options.whole("filters")

    def variables(self) -> tuple[list[str], list[str]]:
        return ["depthwise_kernel", "pointwise_kernel", *(["bias"] if self.bias else [])], []

    def product(self, g: Builder, field: Field, place: str) -> tuple[int, str]:
        channels, rank = field.channels, self.rank
        middle = channels * self.multiplier
        depthwise = self.weight("depthwise_kernel", (*self.sizes, channels, self.multiplier))
        pointwise = self.weight("pointwise_kernel", (*(1,) * rank, middle, self.filters))
        order = (rank + 1, rank, *range(rank))
        weight = depthwise.reshape(*self.sizes, 1, middle).transpose(order)
        name = self.convolve(g, field, weight, middle, channels, f"{place}/depthwise", biased=False)
        inputs = [name, g.constant(np.ascontiguousarray(pointwise.transpose(order)), f"{place}/pointwise")]
        if self.bias:
            inputs.append(g.constant(self.weight("bias", (self.filters,)), f"{place}/bias"))
        return self.filters, g.op("Conv", inputs, f"{place}/z", kernel_shape=[1] * rank)

    def windows(self, x: Array, pads: Pads) -> Array:
        y = arithmetic.depthwise(
            x, self.weights["depthwise_kernel"], strides=self.strides, dilation=self.dilation, padding=pads
        )
        return self.finished(y @ self.weights["pointwise_kernel"].reshape(y.shape[-1], -1))


class Transposed(FrameLayer):
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose: each place of the input adds its kernel to the output.

    ``same`` gives size x stride places, ``valid`` (size - 1) x stride + max(kernel, stride).
    """

    mask_rule = "drops"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rank = rank = rank_of(options.kind)
        self.filters = options.whole("filters")
        self.sizes = options.sizes("kernel_size", rank)
        self.strides = options.sizes("strides", rank, 1)
        self.dilation = options.sizes("dilation_rate", rank, 1)
        self.same = options.choice("padding", ("valid", "same"), "valid") == "same"
        formats = ("channels_last", "channels_first")
        self.first = options.choice("data_format", formats, "channels_last") == "channels_first"
        extra = options.get("output_padding")
        self.extra = None if extra is None else options.sizes("output_padding", rank, least=0)
        self.bias = options.flag("use_bias", True)
        self.activation = read_activation(options, "activation")
        options.finish("groups")

    def variables(self) -> tuple[list[str], list[str]]:
        return ["kernel", *(["bias"] if self.bias else [])], []

    def geometry(self, spatial: Shape) -> tuple[Shape, Shape, Shape]:
        """Cut off before each axis, sizes of the result, sizes of the full one."""
        cuts, sizes, full = [], [], []
        for n, k, s, d, extra in zip(
            spatial, self.sizes, self.strides, self.dilation, self.extra or (None,) * self.rank, strict=True
        ):
            span = (k - 1) * d + 1
            if self.same:
                # In all, this much lies around the input spread by the stride, the larger half before it.
                around = s + span - 2 if extra is None else span + span % 2 - 2 + extra
                cuts.append(span - 1 - min(around - around // 2, span - 1))
                sizes.append((n - 1) * s + 2 - span + around)
            else:
                cuts.append(0)
                sizes.append((n - 1) * s + span + (max(span, s) - span if extra is None else extra))
            full.append((n - 1) * s + span)
        if min(sizes) < 1:
            raise EdgeLstmError(
                f"{self.what}: what comes in", found=f"{list(spatial)} places", expected="more"
            )
        return tuple(cuts), tuple(sizes), tuple(full)

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        if value.time is not None:
            value.axis(1, self.what)
        if len(value.shape) != self.rank + 1:
            raise EdgeLstmError(
                f"{self.what}: what comes in",
                found=f"{count_of(value.rank, 'axis', 'axes')}",
                expected=self.rank + 2,
            )
        perm = tuple(range(self.rank + 2)) if self.first else channels_first(value.shape)
        channels = value.shape[0] if self.first else value.shape[-1]
        spatial = value.shape[1:] if self.first else value.shape[:-1]
        cuts, sizes, full = self.geometry(spatial)
        kernel = self.weight("kernel", (*self.sizes, self.filters, channels))
        weight = np.ascontiguousarray(kernel.transpose(self.rank + 1, self.rank, *range(self.rank)))
        behind = [f - c - n for f, c, n in zip(full, cuts, sizes, strict=True)]
        inputs = [g.layout(value, perm), g.constant(weight, f"{place}/kernel")]
        if self.bias:
            inputs.append(g.constant(self.weight("bias", (self.filters,)), f"{place}/bias"))
        name = g.op(
            "ConvTranspose",
            inputs,
            f"{place}/z",
            kernel_shape=list(self.sizes),
            strides=list(self.strides),
            dilations=list(self.dilation),
            pads=[*cuts, *(max(b, 0) for b in behind)],
            output_padding=[max(-b, 0) for b in behind],
        )
        shape = (self.filters, *sizes) if self.first else (*sizes, self.filters)
        return self.activation.apply(g, replace(value, name=name, shape=shape, perm=perm), place)

    def apply(self, x: Array) -> Array:
        x = np.moveaxis(x, 1, -1) if self.first else x
        cuts, sizes, _ = self.geometry(x.shape[1:-1])
        y = arithmetic.conv_transpose(
            x,
            self.weights["kernel"],
            strides=self.strides,
            dilation=self.dilation,
            crops=[(c, 0) for c in cuts],
            sizes=sizes,
        )
        y = y + self.weights["bias"] if self.bias else y
        # Softmax takes the axis that is last in Keras's own layout.
        return self.activation.compute(np.moveaxis(y, -1, 1) if self.first else y)
