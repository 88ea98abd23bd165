"""Reading somebody else's ONNX file: its external weights, and what no step graph can be made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import MAX_FILE_BYTES, PathLike, read_bytes
from edgelstm.graph.gates import DOMAIN
from edgelstm.graph.step import parse_onnx
from edgelstm.passes.graph import is_standard, subgraphs

#: Versions of the standard operators that are taken, and those of them that are converted first: see ``old_opsets``.
OPSETS = range(7, 26)
CONVERTED = range(7, 11)
_STANDARD = frozenset(schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == "")
#: Bits of an element, for types whose data is packed; all others are whole bytes.
_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


def read_onnx(path: PathLike) -> onnx.ModelProto:
    """The model in ``path`` with the weights of external files in it and its local functions written out.

    Raises EdgeLstmError for a file that is no valid ONNX, weights that are missing, cut short or outside the model's
    folder, opsets other than 7 to 25, and operators that are neither ONNX's own nor functions of the file.
    """
    where = str(path)
    model = parse_onnx(read_bytes(path), where, external=True)
    _load_external(model, Path(path))
    _check_tensors(model, where)
    _check_opset(model, where)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises several unrelated classes
        _check_operators(model, where)  # says more where that is the reason
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EdgeLstmError(f"{where}: not valid ONNX", found=text) from error
    _check_operators(model, where)
    # Our own op stays: the gates are what its body would have to be found as again.
    others = [(f.domain, f.name) for f in model.functions if f.domain != DOMAIN]
    if others:
        try:
            model = onnx.inliner.inline_selected_functions(model, others)
        except Exception as error:  # of no stable class
            raise EdgeLstmError(
                f"{where}: its functions can't be written out", found=str(error).splitlines()[0]
            ) from error
    return model


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


# -- weights in other files -------------------------------------------------------------------------------------------


def all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every constant of a model, those in subgraphs and attributes included."""
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for a in node.attribute:
                yield from (*((a.t,) if a.HasField("t") else ()), *a.tensors)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Put the bytes of external tensors into the model, every size checked before anything is read."""
    outside = [t for t in all_tensors(model) if t.data_location == TensorProto.EXTERNAL]
    total = 0
    for tensor in outside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _inside(path, tensor.name, entries.get("location", ""))
        size = _byte_size(path, tensor)
        start, length = (
            _number(path, tensor.name, entries, key, default)
            for key, default in (("offset", 0), ("length", size))
        )
        total += size
        if length != size or total > MAX_FILE_BYTES:
            raise EdgeLstmError(
                f"{path}: external weight {tensor.name!r}",
                found=f"{count_of(length, 'byte')}"
                if length != size
                else f"{count_of(total, 'byte')} of weights",
                expected=f"{count_of(size, 'byte')} for its shape"
                if length != size
                else f"at most {MAX_FILE_BYTES}",
            )
        available = file.stat().st_size
        if start + length > available:
            raise EdgeLstmError(
                f"{path}: external weight {tensor.name!r}",
                found=f"bytes {start} to {start + length} of {file.name}, which has {available}",
                expected="a weight file that holds all of it",
                hint="The weight file is cut short: copy it again",
            )
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                tensor.raw_data = stream.read(length)
        except OSError as error:
            raise EdgeLstmError(f"can't read {file}", found=error.strerror or str(error)) from error
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def _inside(path: Path, name: str, location: str) -> Path:
    """The file an external weight lies in, if that is a file in the model's folder or below."""
    folder = path.absolute().parent.resolve()
    try:
        file = (folder / location).resolve()
        good = bool(location) and file.is_relative_to(folder) and "\0" not in location
        exists = good and file.is_file()
    except (OSError, ValueError, RuntimeError):
        good = exists = False
    if not good:
        raise EdgeLstmError(
            f"{path}: external weight {name!r} points outside the model's folder",
            found=repr(location),
            expected="a file beside the model",
            hint="Put the weights beside the model and save it again",
        )
    if not exists:
        raise EdgeLstmError(
            f"{path}: the file of external weight {name!r} is missing",
            found=f"no {location}",
            expected=f"it in {path.parent}",
            hint="Copy the weight file beside the model",
        )
    return file


def _byte_size(path: Path, tensor: TensorProto) -> int:
    if any(d < 0 for d in tensor.dims) or tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise EdgeLstmError(
            f"{path}: external weight {tensor.name!r}",
            found=f"type {tensor.data_type}, shape {list(tensor.dims)}",
            expected="numbers of a known type and shape",
        )
    try:
        name = TensorProto.DataType.Name(tensor.data_type)
        bits = _BITS.get(name) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (ValueError, KeyError) as error:
        raise EdgeLstmError(
            f"{path}: external weight {tensor.name!r}", found=f"element type {tensor.data_type}"
        ) from error
    return (math.prod(int(d) for d in tensor.dims) * int(bits) + 7) // 8


def _number(path: Path, name: str, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not text.isascii() or not text.isdigit():
        raise EdgeLstmError(
            f"{path}: external weight {name!r}: {key}", found=repr(text), expected="a whole number"
        )
    return int(text)


def _check_tensors(model: onnx.ModelProto, where: str) -> None:
    """Every constant can be read: its type is known, and its bytes are those of its shape."""
    for tensor in all_tensors(model):
        try:
            if tensor.data_type != TensorProto.STRING:
                numpy_helper.to_array(tensor)
        except Exception as error:  # of no stable class
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EdgeLstmError(
                f"{where}: constant {tensor.name!r} can't be read",
                found=f"type {tensor.data_type}, shape {list(tensor.dims)}: {text}",
                expected="a known type and as many values as its shape has",
            ) from error


# -- operators --------------------------------------------------------------------------------------------------------


def _check_opset(model: onnx.ModelProto, where: str) -> None:
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise EdgeLstmError(
            f"{where}: version of the standard operators",
            found=", ".join(map(str, versions)) or "none",
            expected=f"opset {OPSETS[0]} to {OPSETS[-1]}",
            hint="Convert it: onnx.version_converter.convert_version(model, 17)",
        )


def _check_operators(model: onnx.ModelProto, where: str) -> None:
    functions = {(f.domain, f.name) for f in model.functions}
    nodes = [n for graph in all_graphs(model.graph) for n in graph.node]
    nodes += [n for f in model.functions for n in f.node]
    custom = {
        f"{node.domain}.{node.op_type}"
        for node in nodes
        if not is_standard(node) and (node.domain, node.op_type) not in functions
    }
    custom |= {
        node.op_type
        for node in nodes
        if is_standard(node)
        and (node.domain, node.op_type) not in functions
        and node.op_type not in _STANDARD
    }
    if custom:
        raise EdgeLstmError(
            f"{where}: operators that are not ONNX's own",
            found=", ".join(sorted(map(str, custom))),
            expected="standard operators, or custom ones with their function bodies in the file",
            hint="A file that a runtime optimised for itself holds such operators: take the one it was made of",
        )
