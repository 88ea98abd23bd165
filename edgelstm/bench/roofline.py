"""What a step costs at least on a device: FLOPs and bytes of a step graph against peak and bandwidth. Computed, not measured.

The roofline (Williams, Waterman & Patterson 2009): a kernel takes at least its FLOPs over the device's peak, and at
least its bytes over the device's bandwidth. Two bounds are given for a step:

- ``best``: every weight, frame, state and output crosses the memory bus once; all between stays in caches.
- ``kernels``: each kernel by itself reads what it needs from memory and writes what it makes. A caller whose tensors
  outgrow the L2 cache is nearer to this one.

Neither counts launching kernels, which is what small models wait for, nor copies between host and device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import DOMAIN
from edgelstm.graph.step import StepModel, dtype_name
from edgelstm.passes.graph import Graph, attribute, is_standard
from edgelstm.passes.shapes import element_types, shapes_of_one

#: Operators that give back what they got, seen otherwise: a builder folds them into the kernel before or after.
_THROUGH = frozenset(
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"]
)
#: Operators that move nothing.
_FREE = _THROUGH | {"Split", "Slice", "Shape", "Constant"}
#: Operators that a builder runs inside the kernel that makes their first input; further inputs have to be read.
_POINTWISE = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Abs",
        "Pow",
        "Exp",
        "Log",
        "Sqrt",
        "Min",
        "Max",
        "Clip",
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Softplus",
        "Sigmoid",
        "HardSigmoid",
        "Tanh",
        "BatchNormalization",
    }
)
_STORED_AS = ("Cast", "QuantizeLinear")


@dataclass(frozen=True)
class Kernel:
    """One launch: ``flops`` are two for each multiply-accumulate of a product, 0 elsewhere; ``bytes`` it reads and
    writes; ``math`` is the dtype its product multiplies in, None where there is none."""

    name: str
    op_type: str
    flops: int
    bytes: int
    math: str | None = None


@dataclass(frozen=True)
class Work:
    """What one step of ``streams`` streams does. ``once``: bytes that cross the memory bus in any case."""

    kernels: tuple[Kernel, ...]
    once: int
    streams: int

    @property
    def flops(self) -> int:
        """FLOPs of all products."""
        return sum(k.flops for k in self.kernels)

    @property
    def bytes(self) -> int:
        """Bytes when every kernel reads from memory and writes to it."""
        return sum(k.bytes for k in self.kernels)


@dataclass(frozen=True)
class Device:
    """A GPU's data sheet. ``clock``: GHz in its highest power mode. ``bandwidth``: GB/s. ``rates``: dense FLOPs of
    one SM in one clock cycle by dtype; float32 on the CUDA cores, all else on the tensor cores."""

    name: str
    compute_capability: str
    sms: int
    clock: float
    bandwidth: float
    rates: Mapping[str, int]
    source: str

    def peak(self, dtype: str) -> float:
        """FLOP/s in ``dtype``. Raises EdgeLstmError for one the GPU does not multiply in."""
        if dtype not in self.rates:
            raise EdgeLstmError(f"{self.name} has no {dtype}", expected=f"one of {', '.join(self.rates)}")
        return self.sms * self.clock * 1e9 * self.rates[dtype]


@dataclass(frozen=True)
class Bound:
    """Seconds a step takes at least; see the module's docstring. ``memory``: whether bandwidth sets ``best``."""

    best: float
    kernels: float
    memory: bool


_AMPERE = {"float32": 256, "float16": 2048, "bfloat16": 2048, "int8": 4096}
_BLACKWELL = {"float32": 256, "float16": 8192, "bfloat16": 8192, "int8": 16384, "float8e4m3fn": 16384}
#: Looked up in November 2026. tests/bench/test_roofline.py compares the peaks that follow with those NVIDIA prints.
DEVICES = (
    Device(
        "Orin Nano 8GB",
        "8.7",
        8,
        1.020,
        102.0,
        _AMPERE,
        "NVIDIA technical blog, Jetson Orin Nano Developer Kit Gets a 'Super' Boost (December 2024): 1,024 cores, "
        "1,020 MHz, 33 dense INT8 TOPS, 17 FP16 TFLOPS, 102 GB/s (MAXN SUPER)",
    ),
    Device(
        "Orin NX 16GB",
        "8.7",
        8,
        1.173,
        102.4,
        _AMPERE,
        "NVIDIA technical blog, JetPack 6.2 Brings Super Mode (January 2025): 1,173 MHz (MAXN SUPER); Jetson Orin NX "
        "data sheet: 1,024 cores, 102.4 GB/s. GPU only: its 157 sparse TOPS include the DLAs",
    ),
    Device(
        "AGX Orin 64GB",
        "8.7",
        16,
        1.300,
        204.8,
        _AMPERE,
        "Jetson AGX Orin Series Technical Brief: 2,048 cores, 1.3 GHz, 5.3 FP32 TFLOPS, 204.8 GB/s; README of "
        "NVIDIA/Deep-Learning-Accelerator-SW: GPU alone 171 sparse INT8 TOPS (MAXN)",
    ),
    Device(
        "Thor T5000",
        "11.0",
        20,
        1.575,
        273.0,
        _BLACKWELL,
        "NVIDIA technical blog, Introducing NVIDIA Jetson Thor (August 2025): 2,560 cores, 1035 sparse FP8 and INT8, "
        "517 dense FP8 and sparse FP16 TFLOPS, 273 GB/s (MAXN)",
    ),
)


def work(step: StepModel, streams: int = 1) -> Work:
    """FLOPs and bytes of one step, from the types and shapes the graph has: give it the graph that will be built.

    Products are Conv, ConvTranspose, Gemm and MatMul. FusedGates is one kernel, as in the plugin; its arithmetic is not
    counted, its bytes are. Tensors behind a Cast or Q/DQ count in the type they are stored in.
    """
    return _Counter(step, streams).work()


def bound(work: Work, device: Device) -> Bound:
    """Least time of ``work`` on ``device``. Raises EdgeLstmError for a product in a dtype the device lacks."""
    bandwidth = device.bandwidth * 1e9
    compute = [k.flops / device.peak(k.math) if k.math else 0.0 for k in work.kernels]
    once = work.once / bandwidth
    kernels = sum(max(c, k.bytes / bandwidth) for c, k in zip(compute, work.kernels, strict=True))
    return Bound(max(sum(compute), once), kernels, once > sum(compute))


class _Counter:
    """Sizes of the values of a graph, in the types they are stored in."""

    def __init__(self, step: StepModel, streams: int) -> None:
        axis = step.signature.stream_axis
        if isinstance(axis, int) and streams != axis:
            raise EdgeLstmError("streams", found=streams, expected=f"{axis}: the graph fixes them")
        self._graph = Graph(step)
        self._streams = streams
        #: Of a graph with any number of streams the shapes are those of one.
        self._times = 1 if isinstance(axis, int) else streams
        self._shapes = shapes_of_one(step)
        self._types = element_types(step)

    def work(self) -> Work:
        graph, signature = self._graph, self._graph.signature
        kernels = [k for node in graph.nodes if (k := self._kernel(node)) is not None]
        names = [t.name for t in (*signature.inputs, *signature.outputs)]
        names += [name for s in signature.states for name in (s.input, s.output)]
        once = sum(self._size(name) for name in dict.fromkeys([*names, *graph.initializers]))
        return Work(tuple(kernels), once, self._streams)

    def _kernel(self, node: onnx.NodeProto) -> Kernel | None:
        inputs = [name for name in node.input if name]
        outputs = [name for name in node.output if name]
        name = node.name or outputs[0]
        if is_standard(node) and node.op_type in _FREE:
            return None
        if is_standard(node) and node.op_type in _POINTWISE:
            extra = sum(self._read(v) for v in inputs[1:] if not self._is_weight(v))
            return Kernel(name, node.op_type, 0, extra) if extra else None
        size = sum(self._read(v) for v in dict.fromkeys(inputs)) + sum(map(self._written, outputs))
        flops = self._flops(node)
        if node.domain == DOMAIN or not flops:
            return Kernel(name, node.op_type, 0, size)
        return Kernel(name, node.op_type, flops, size, self._math(node))

    def _flops(self, node: onnx.NodeProto) -> int:
        if not is_standard(node) or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return 0
        first, second, out = (self._shapes[name] for name in (*node.input[:2], node.output[0]))
        if node.op_type == "ConvTranspose":
            macs = math.prod(map(abs, first)) * math.prod(second[1:])
        elif node.op_type == "Conv":
            macs = math.prod(map(abs, out)) * math.prod(second[1:])
        else:
            inner = first[0] if attribute(node, "transA", 0) else first[-1]
            macs = math.prod(map(abs, out)) * abs(inner)
        return 2 * macs * self._times

    def _math(self, node: onnx.NodeProto) -> str:
        """What a product multiplies in: codes where both sides are codes of one type, else the type of its inputs."""
        found = set()
        for name in node.input[:2]:
            source = self._graph.producer(name, "DequantizeLinear")
            found.add(self._type(source.input[0] if source else name))
        codes = {"uint8": "int8", "int8": "int8", "float8e4m3fn": "float8e4m3fn"}
        if len(found) == 1 and (code := found.pop()) in codes:
            return codes[code]
        return self._type(node.input[0])

    def _source(self, name: str) -> tuple[str, int]:
        """The value that lies in memory where ``name`` is read, and bytes of one number of it: a cast is made by the
        kernel before it or after it, whichever moves less."""
        itemsize = _itemsize(self._type(name))
        ends = {*self._graph.inputs, *self._graph.initializers}
        while (node := self._graph.producer(name, *_THROUGH)) is not None:
            if node.op_type == "QuantizeLinear" and node.input[0] not in ends:
                break
            name = str(node.input[0])
            itemsize = min(itemsize, _itemsize(self._type(name)))
        return name, itemsize

    def _is_weight(self, name: str) -> bool:
        return self._source(name)[0] in self._graph.initializers

    def _read(self, name: str) -> int:
        source, itemsize = self._source(name)
        return self._elements(source if self._is_weight(name) else name) * itemsize

    def _written(self, name: str) -> int:
        """Bytes a kernel writes for its result, in each form that others read it in."""
        return self._elements(name) * sum(self._forms(name, _itemsize(self._type(name))))

    def _forms(self, name: str, itemsize: int) -> set[int]:
        """Bytes of one number in each form a value is stored in: its own, or what its readers make of it before
        anything else sees it."""
        readers = self._graph.consumers(name)
        forms = {itemsize} if name in self._graph.outputs or not readers else set()
        for node in readers:
            folded = is_standard(node) and node.op_type in (*_STORED_AS, *_POINTWISE)
            if folded and all(self._is_weight(v) for v in node.input if v and v != name):
                after = str(node.output[0])
                forms |= self._forms(after, min(itemsize, _itemsize(self._type(after))))
            else:
                forms.add(itemsize)
        return forms

    def _type(self, name: str) -> str:
        return dtype_name(self._types[name]) if name in self._types else "float32"

    def _elements(self, name: str) -> int:
        """Numbers in a value; 0 where its shape is not known, which keeps the bound one."""
        if name in self._graph.initializers:
            return int(math.prod(self._graph.initializers[name].dims))
        return math.prod(map(abs, self._shapes[name])) * self._times if name in self._shapes else 0

    def _size(self, name: str) -> int:
        return self._elements(name) * _itemsize(self._type(name))


def _itemsize(dtype: str) -> int:
    try:
        return int(np_dtype(dtype).itemsize)
    except TypeError as error:
        raise EdgeLstmError(f"size of a number in {dtype}", expected="a dtype of whole bytes") from error
