"""Where the Python modules of TensorRT differ: 10.3 to 11.x, and TensorRT for RTX. All else is the same code.

Enumerators are asked for by name, since their numbers moved between versions.
"""

from __future__ import annotations

import importlib.util
from typing import Any, get_args

from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.sidecar import RuntimeName
from edgelstm.runtime.tensorrt import load_module

MODULES: dict[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def installed() -> list[RuntimeName]:
    """The runtimes whose module is there; none of them is imported. A folder of that name is no module."""
    specs = {name: importlib.util.find_spec(module) for name, module in MODULES.items()}
    return [name for name, spec in specs.items() if spec is not None and spec.origin is not None]


def load(runtime: RuntimeName) -> Any:
    """The module of a runtime. Raises EdgeLstmError where it is missing or does not load."""
    if runtime not in get_args(RuntimeName):
        raise EdgeLstmError("runtime", found=runtime, expected=f"one of {', '.join(MODULES)}")
    return load_module(runtime)


def network_flags(trt: Any) -> int:
    """Strong typing must be asked for in 10.x; later it is the only way, and the flag may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def set_flag(trt: Any, config: Any, name: str, on: bool = True) -> None:
    """Set or clear a builder flag; clearing one that this version lacks is what it does anyway."""
    flag = getattr(trt.BuilderFlag, name, None)
    if flag is None:
        if on:
            raise EdgeLstmError(f"builder flag {name}", found=f"version {trt.__version__} without it")
        return
    if on:
        config.set_flag(flag)
    else:
        config.clear_flag(flag)


def set_targets(trt: Any, config: Any, capabilities: list[str]) -> None:
    """Compute capabilities to compile for, such as ["8.6"]; TensorRT for RTX only."""
    names = ["SM" + c.replace(".", "") for c in capabilities]
    config.num_compute_capabilities = len(names)
    for place, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), place)


def parser_errors(parser: Any) -> list[dict[str, str]]:
    """What the ONNX parser found wrong: text, and where this version tells it, the node's name and operator."""
    found = []
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        told = {"text": str(error.desc())}
        for key in ("node_name", "node_operator"):
            if callable(getattr(error, key, None)):
                told[key] = str(getattr(error, key)())
        found.append(told)
    return found
