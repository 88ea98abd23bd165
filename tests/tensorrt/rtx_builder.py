"""The real TensorRT for RTX: parses and builds on a machine without a GPU, and tells what each layer computes in.

In a process of its own, since the builder may abort the one it runs in. "It builds" says little: a Q/DQ pair that
TensorRT does not recognise makes a layer that computes in float, silently. So the layers' input types come back too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHILD = r"""
import json, sys
import tensorrt_rtx as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, text):
        self.lines.append((severity.name, text))

log = Log()
builder = trt.Builder(log)
flags = trt.NetworkDefinitionCreationFlag
network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
plan = None
if trt.OnnxParser(network, log).parse(open(sys.argv[1], "rb").read()):
    shapes = {t.name: tuple(t.shape) for t in map(network.get_input, range(network.num_inputs))}
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, *(tuple(n if d == -1 else d for d in shape) for n in (1, 1, 4)))
    if any(-1 in shape for shape in shapes.values()):
        config.add_optimization_profile(profile)
    if len(sys.argv) > 2:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, sys.argv[2]), 0)
    plan = builder.build_serialized_network(network, config)
json.dump({"lines": log.lines, "bytes": 0 if plan is None else plan.nbytes}, sys.stdout)
"""


@dataclass(frozen=True)
class Built:
    """``layers``: the input types of each convolution or product, by layer name. ``error``: why there are none."""

    layers: dict[str, list[str]]
    error: str = ""


def build(model: bytes, *capability: str) -> Built:
    """Parse and build, for the default targets or one compute capability such as "SM86"."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model)
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), *capability], capture_output=True, text=True, timeout=200
        )
    if not child.stdout:
        return Built({}, child.stderr or f"the builder ended with code {child.returncode}")
    answer = json.loads(child.stdout)
    if not answer["bytes"]:
        return Built({}, "\n".join(text for severity, text in answer["lines"] if "ERROR" in severity))
    listing = next(text for _, text in answer["lines"] if text.startswith("Layers:"))
    layers = re.findall(
        r"^Name: (\S+), LayerType: (?:correlation|gemm|runtime_\w+|deconv), Inputs: (.*?), Outputs",
        listing,
        re.MULTILINE,
    )
    return Built({name: re.findall(r"Datatype: (\w+)", inputs) for name, inputs in layers})
