"""Every name of cuda-bindings and of TensorRT's Python module that the GPU backends use exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from edgelstm.runtime import cuda, tensorrt


def chains(module: Any, root: str) -> set[tuple[str, ...]]:
    """Attributes that a module's source asks of ``root``: ``driver.A.B`` is ("A", "B")."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        base = node.id if isinstance(node, ast.Name) else ""
        if base == "self" and names[:1] == [f"_{root}"]:
            base, names = root, names[1:]
        if base == root and names:
            found.add(tuple(names))
    return found


def missing(module: Any, names: set[tuple[str, ...]]) -> list[str]:
    lost = []
    for chain in names:
        at = module
        for name in chain:
            at = getattr(at, name, None)
        if at is None:
            lost.append(".".join(chain))
    return lost


def test_of_the_driver() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    names = chains(cuda, "driver")
    # Members of enumerations that have a name of their own in between.
    names |= {("CUdevice_attribute", *chain) for chain in chains(cuda, "attribute")}
    assert len(names) > 30
    assert not missing(driver, names)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_of_tensorrt(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name is a module without an origin
        pytest.skip(f"needs {name}")
    module = importlib.import_module(name)
    names = chains(tensorrt, "trt")
    if name == "tensorrt":
        names = {chain for chain in names if chain[0] != "CudaGraphStrategy"}
    assert ("Runtime",) in names
    assert not missing(module, names)
    members = {
        "ICudaEngine": (
            "num_io_tensors get_tensor_name get_tensor_dtype get_tensor_shape device_memory_size_v2 "
            "create_execution_context"
        ),
        "IExecutionContext": "set_device_memory set_input_shape set_tensor_address execute_async_v3",
        "Runtime": "deserialize_cuda_engine engine_host_code_allowed",
    }
    source = Path(tensorrt.__file__).read_text(encoding="utf-8")
    for kind, attributes in members.items():
        for attribute in attributes.split():
            assert f".{attribute}" in source, "the list here is out of date"
            assert hasattr(getattr(module, kind), attribute), (kind, attribute)
    kinds = {member for member in dir(module.DataType) if member in tensorrt._TYPES}
    assert kinds == set(tensorrt._TYPES)
    if name == "tensorrt_rtx":
        config = "set_execution_context_allocation_strategy cuda_graph_strategy"
        assert all(hasattr(module.IRuntimeConfig, a) for a in config.split())
        assert hasattr(module.ICudaEngine, "create_runtime_config")
