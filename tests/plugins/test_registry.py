"""The library in a real plugin registry: TensorRT for RTX has one, though no plugin layers. In a child, which may abort."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from adapter_library import VERSIONS, Adapters

CHILD = r"""
import json, sys
import numpy as np
import tensorrt_rtx as trt
from edgelstm.runtime.plugin_library import register

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []
    def log(self, severity, text):
        if severity == trt.ILogger.Severity.ERROR:
            self.errors.append(text)

arrays = []  # a PluginField holds no reference to its own

def fields(**values):
    kinds = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
    collection = []
    for name, value in values.items():
        dtype, kind = kinds[type(value)]
        arrays.append(np.array([value], dtype))
        collection.append(trt.PluginField(name, arrays[-1], kind))
    return trt.PluginFieldCollection(collection)

log = Log()
runtime = trt.Runtime(log)  # the registry's logger
registry = trt.get_plugin_registry()
handle = registry.load_library(sys.argv[1])
again = registry.load_library(sys.argv[1]) is not None, register(registry, sys.argv[1])
creator = registry.get_creator("FusedGates", "1", "edgelstm")
build = trt.TensorRTPhase.BUILD
plugin = creator.create_plugin("gates", fields(peephole=1, cell_clip=3.0, in_place=1, count_non_finite=1), build)
core, made, run = (
    plugin.get_capability_interface(getattr(trt.PluginCapabilityType, kind)) for kind in ("CORE", "BUILD", "RUNTIME")
)
seen = {
    "loaded": handle is not None,
    "again": again,
    "fields": [field.name for field in creator.field_names],
    "core": [core.plugin_name, core.plugin_version, core.plugin_namespace],
    "interfaces": [[i.interface_info.kind, i.interface_info.major] for i in (core, made, run)],
    "outputs": made.num_outputs,
    "metadata": made.metadata_string,
    "refused": creator.create_plugin("gates", fields(coupled=7), build) is None,
    "errors": log.errors,
}
del core, made, run, plugin, creator
registry.deregister_library(handle)
seen["gone"] = registry.get_creator("FusedGates", "1", "edgelstm") is None
seen["ours"] = [register(registry, sys.argv[1]) for _ in range(2)]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(adapters: Adapters) -> dict[str, Any]:
    """What a child saw of the library, built against the newest headers that are here."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed: pip install 'edgelstm[rtx]'")
    return in_child(adapters[VERSIONS[-1]].library)


def in_child(library: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_loads_and_registers(seen: dict[str, Any]) -> None:
    assert seen["loaded"]
    assert seen["core"] == ["FusedGates", "1", "edgelstm"]
    assert len(seen["fields"]) == 13
    assert seen["gone"]


def test_a_second_engine_finds_it_loaded(seen: dict[str, Any]) -> None:
    """TensorRT refuses a library whose creators it has; ours asks first."""
    assert seen["again"] == [False, True]
    assert seen["ours"] == [True, True]


def test_makes_a_plugin_with_aliased_outputs(seen: dict[str, Any]) -> None:
    kinds = [["PLUGIN_V3ONE_CORE", 1], ["PLUGIN_V3ONE_BUILD", 2], ["PLUGIN_V3ONE_RUNTIME", 1]]
    assert seen["interfaces"] == kinds  # version 2 of the build capability is the one with aliasing
    assert seen["outputs"] == 3
    assert "cell_clip=3 " in seen["metadata"]


def test_says_to_tensorrts_log_what_is_wrong(seen: dict[str, Any]) -> None:
    assert seen["refused"]
    assert any("FusedGates: field 'coupled' must be 0 or 1, found 7" in text for text in seen["errors"])
