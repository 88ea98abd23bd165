"""TorchScript files: modules that torch saved together with their code, opened and exported where torch still can."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, check_file
from edgelstm.frontends.torch.package import import_torch
from edgelstm.graph.step import OPSET

if TYPE_CHECKING:
    from torch import nn


def is_torchscript(path: PathLike) -> bool:
    """Whether the file is a zip archive that holds TorchScript code. Raises EdgeLstmError if it can't be read."""
    source = check_file(path)
    if not zipfile.is_zipfile(source):
        return False
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise EdgeLstmError(f"{source} is a damaged zip archive", found=str(error)) from error
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def load_torchscript(path: PathLike) -> nn.Module:
    """The module in a TorchScript file, on the CPU, in evaluation mode. Raises EdgeLstmError with torch's reason."""
    torch = import_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = torch.jit.load(Path(path), map_location="cpu").eval()
    except Exception as error:  # torch's own, of no stable class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EdgeLstmError(
            f"torch can't open the TorchScript file {path}",
            found=(lines or [type(error).__name__])[0][:300],
            hint="A file of an older torch, or one that needs custom operators: export it with the torch that wrote it",
        ) from error
    return module


def copied_script(module: nn.Module) -> nn.Module:
    """A copy on the CPU in evaluation mode, as a file would hold it: a deep copy has parameters that are no leaves."""
    torch = import_torch()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, file)
        file.seek(0)
        copied: nn.Module = torch.jit.load(file, map_location="cpu").eval()
    return copied.float()


def holds_script(module: nn.Module) -> bool:
    """Whether TorchScript is anywhere in ``module``."""
    torch = import_torch()
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def export_script(step: nn.Module, examples: Sequence[Any], inputs: Sequence[str]) -> onnx.ModelProto:
    """torch's older exporter, the one that reads TorchScript: axis 0 of all ``inputs`` is free. Raises whatever torch does."""
    torch = import_torch()
    file = io.BytesIO()
    traced = torch.jit.trace(step, tuple(examples), check_trace=False)
    torch.onnx.export(
        traced,
        tuple(examples),
        file,
        dynamo=False,
        opset_version=OPSET,
        input_names=list(inputs),
        dynamic_axes={name: {0: "N"} for name in inputs},
    )
    return onnx.load_from_string(file.getvalue())
