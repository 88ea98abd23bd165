"""What is quantised, and how, for each target: the one place to look.

ONNX Runtime on the CPU multiplies uint8 activations with int8 weights. Its convolution does so only when the output
is quantised too (it then becomes QLinearConv); its Gemm gives float32 from integers, provided the bias is added
apart, and the zero points are written down. TensorRT wants symmetric scales, one for an activation (with any other it
computes in float and says nothing), and keeps the output of a product in floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgelstm.errors import EdgeLstmError

Target = Literal["onnxruntime", "tensorrt"]
Precision = Literal["int8", "fp8", "fp16", "bf16", "int8-weights", "bf16-weights", "fp32"]


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ pairs go around one kind of product, besides its activation and its weight.

    output: quantise what it makes. bias_apart: add the bias by an Add of its own. bias_subtracted: turn an Add of a constant
    to what it makes into a Sub: ONNX Runtime makes a float Gemm of MatMul and Add before it looks for Q/DQ.
    """

    output: bool = False
    bias_apart: bool = False
    bias_subtracted: bool = False


@dataclass(frozen=True)
class Codes:
    """How activations and states are stored.

    dtype and zero_point of the codes; ``largest``: the code of the largest value. per_channel: a tensor may have a
    scale for each channel, by a Mul before a single scale. joined: codes are concatenated before they are
    dequantised.
    """

    dtype: str
    weight_dtype: str
    zero_point: int
    largest: float
    per_channel: bool
    joined: bool


PLACEMENT: dict[Target, dict[str, Placement]] = {
    "onnxruntime": {
        "Conv": Placement(output=True),
        "Gemm": Placement(bias_apart=True),
        "MatMul": Placement(bias_subtracted=True),
    },
    "tensorrt": {"Conv": Placement(), "Gemm": Placement(), "MatMul": Placement()},
}

CODES: dict[tuple[Target, str], Codes] = {
    ("onnxruntime", "int8"): Codes("uint8", "int8", 128, 127, per_channel=True, joined=True),
    ("tensorrt", "int8"): Codes("int8", "int8", 0, 127, per_channel=True, joined=False),
    ("tensorrt", "fp8"): Codes("float8e4m3fn", "float8e4m3fn", 0, 448, per_channel=False, joined=False),
}

#: Products with a smaller part of all multiplications than this stay in float: heads and stems, whose errors show most.
SMALL = 0.02

#: What is no state (frames, a stem's features) is read in two codes, each worth half of it, where that adds no more than
#: this part to all multiplications: half the rounding error, and half the range for the weights that it meets.
FINE = 0.25

#: In a graph of one stream (ONNX Runtime), a product of a vector that is not all state, with at least so many
#: multiplications, reads two codes one below the other: the second row holds what rounding left over, so that the
#: activation has 13 bits over its range. One vector waits for its weights, and both rows use them when they come; with more
#: streams in a call the second row would double the arithmetic. The operators around it take about as long as this many
#: multiplications in int8.
TWO_ROWS = 2**16
#: What the codes of the second row are worth, in those of the first: 127 of them reach half a step.
REST = 1 / 254
#: How much wider than its range a vector in two codes may be: that costs it nothing that shows.
HEADROOM = 8

#: Precisions of NVIDIA GPUs by architecture. Sources: NVIDIA TensorRT support matrix; CUDA compute capabilities.
GPUS: dict[str, frozenset[str]] = {
    "xavier": frozenset({"int8", "fp16", "fp32"}),
    "turing": frozenset({"int8", "fp16", "fp32"}),
    "ampere": frozenset({"int8", "fp16", "bf16", "fp32"}),
    "orin": frozenset({"int8", "fp16", "bf16", "fp32"}),
    "ada": frozenset({"int8", "fp8", "fp16", "bf16", "fp32"}),
    "hopper": frozenset({"int8", "fp8", "fp16", "bf16", "fp32"}),
    "blackwell": frozenset({"int8", "fp8", "fp16", "bf16", "fp32"}),
    "thor": frozenset({"int8", "fp8", "fp16", "bf16", "fp32"}),
}


def check_target(target: str, precision: str, gpu: str | None = None) -> None:
    """Raise EdgeLstmError for a runtime that is none, or a precision that it or the GPU lacks."""
    if target not in get_args(Target):
        raise EdgeLstmError("runtime", found=target, expected=f"one of {', '.join(get_args(Target))}")
    if precision not in get_args(Precision):
        raise EdgeLstmError(
            "precision", found=precision, expected=f"one of {', '.join(get_args(Precision))} or auto"
        )
    if target == "onnxruntime" and precision == "fp8":
        raise EdgeLstmError(
            "precision fp8 for ONNX Runtime on the CPU",
            found="no 8-bit floating point arithmetic there",
            expected="int8, fp16, bf16 or fp32",
            hint="Use --runtime tensorrt for Ada, Hopper, Blackwell or Thor, or --precision int8",
        )
    if target == "tensorrt" and precision.endswith("-weights"):
        raise EdgeLstmError(
            f"precision {precision} for TensorRT",
            found="weights alone in fewer bits, which the CPU is made for",
            expected="int8, fp8, fp16 or bf16",
        )
    if gpu is None:
        return
    if target != "tensorrt":
        raise EdgeLstmError(
            "a GPU given for ONNX Runtime on the CPU", found=gpu, hint="Use --runtime tensorrt"
        )
    if gpu not in GPUS:
        raise EdgeLstmError("GPU", found=gpu, expected=f"one of {', '.join(GPUS)}")
    if precision not in GPUS[gpu]:
        having = [name for name, precisions in GPUS.items() if precision in precisions]
        raise EdgeLstmError(
            f"precision {precision} on {gpu}",
            found=f"an architecture without {precision} arithmetic",
            expected=f"one of {', '.join(sorted(GPUS[gpu]))}",
            hint=f"{precision} runs on {', '.join(having)}",
        )
