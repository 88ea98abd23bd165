"""The peer ``onnxruntime.quantization.quantize_static``: explicit Q/DQ, min-max ranges, per-channel weights."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feeds import Feed, as_step, plain_step

#: The operators that hold weights: all that makes a step faster and smaller in INT8.
WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Setting:
    """How quantize_static is called. ``activations``: QUInt8 or QInt8 (weights are QInt8). ``operators``: those it may
    quantise; None is its default, all that it knows, among them the gates' products and the cell state's path.
    ``outputs``: whether it quantises the operators' outputs too. It does by default, and only then does ONNX Runtime
    run a Conv in INT8; Gemm and MatMul it does not need it for, and OpenVINO never."""

    activations: str = "QUInt8"
    symmetric: bool = False
    operators: tuple[str, ...] | None = None
    outputs: bool = True


#: Its default for x86 by its own documentation, the two kinds for GPUs and Arm, each with weighted operators only, and
#: with their inputs only.
SETTINGS = {
    "u8s8": Setting(),
    "s8s8": Setting("QInt8"),
    "s8s8-symmetric": Setting("QInt8", symmetric=True),
    "u8s8-weighted": Setting(operators=WEIGHTED),
    "s8s8-symmetric-weighted": Setting("QInt8", symmetric=True, operators=WEIGHTED),
    "u8s8-inputs": Setting(operators=WEIGHTED, outputs=False),
}


def quantize_static(
    step_path: Path, feeds: Iterable[Feed], out: Path, setting: Setting | None = None
) -> None:
    """Quantise a step graph of ours; ``out`` is a step graph with the same Signature.

    Its own preparation (shape inference and graph optimisation) runs first, as its documentation asks. Biases are
    INT32, its default.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
    )
    from onnxruntime.quantization import (
        quantize_static as quantise,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Feeds, one at a time."""

        def __init__(self) -> None:
            self._feeds: Iterator[Any] = iter(feeds)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    setting = setting or Setting()
    logging.getLogger().setLevel(logging.ERROR)  # it warns of what it does by default
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, result = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "result"))
        plain_step(step_path, plain)
        quant_pre_process(str(plain), str(prepared))
        quantise(
            str(prepared),
            str(result),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=None if setting.operators is None else list(setting.operators),
            per_channel=True,
            activation_type=QuantType[setting.activations],
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": setting.symmetric,
                "OpTypesToExcludeOutputQuantization": [] if setting.outputs else list(WEIGHTED),
            },
        )
        as_step(result, step_path).save(out)
