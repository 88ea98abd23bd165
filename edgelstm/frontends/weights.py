"""Factories named on the command line, and weights files loaded into the modules they make."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, check_file

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Where training frameworks put a state dict inside a checkpoint.
NESTED = ("state_dict", "model_state_dict", "model", "net")
#: Prefixes that wrappers (DataParallel, torch.compile, Lightning) put in front of every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: Names listed in a message before the rest is only counted.
LISTED = 5


def resolve(spec: str, kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """The module that ``package.module:factory`` or ``path/to/file.py:factory`` makes, in evaluation mode.

    ``factory`` is a function or class called with ``kwargs``, or a module as it is. The named file runs, as any
    import does. Raises EdgeLstmError when it can't be imported, has no such name, fails, or makes something else.
    """
    torch = import_torch()
    place, _, attribute = spec.rpartition(":")
    source = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory: Any = source
    for part in attribute.split("."):
        if not hasattr(factory, part):
            names = [n for n in vars(source) if not n.startswith("_")]
            raise EdgeLstmError(
                f"{place} has no {attribute!r}",
                expected=f"one of {_listed(names)}",
                hint="Check the spelling",
            )
        factory = getattr(factory, part)
    made = factory
    if not isinstance(factory, torch.nn.Module):
        if not callable(factory):
            raise EdgeLstmError(spec, found=type(factory).__name__, expected="a function or class to call")
        try:
            made = factory(**(kwargs or {}))
        except Exception as error:  # the user's own code: whatever it raises is what has to be told
            raise EdgeLstmError(
                f"{spec} failed",
                found=f"{type(error).__name__}: {error}",
                hint="Arguments go in as --init '{\"hidden\": 64}'" if isinstance(error, TypeError) else None,
            ) from error
    if not isinstance(made, torch.nn.Module):
        raise EdgeLstmError(spec, found=type(made).__name__, expected="a factory of a torch.nn.Module")
    module: nn.Module = made.eval()
    return module


def load_weights(module: nn.Module, path: PathLike) -> nn.Module:
    """Load a .safetensors, .pt or .pth file into ``module`` and return it; every tensor must fit, by name and shape.

    A state dict may lie under one of :data:`NESTED`, and its names may bear one of :data:`PREFIXES`. Nothing is
    unpickled but tensors (``weights_only``). Raises EdgeLstmError naming the tensors that are missing, left over
    or of another shape.
    """
    weights = _read(Path(path))
    wanted = dict(module.state_dict())
    weights = _unprefixed(weights, wanted)
    problems = []
    missing = [name for name in wanted if name not in weights]
    left_over = [name for name in weights if name not in wanted]
    misshapen = [
        f"{name} {list(weights[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    for label, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen)):
        if names:
            problems.append(f"{len(names)} {label}: {_listed(names)}")
    if problems:
        raise EdgeLstmError(
            f"{path} does not fit {type(module).__name__}",
            found="; ".join(problems),
            expected=f"its {len(wanted)} tensors",
            hint="Was the factory called with the arguments the model was trained with? See --init",
        )
    module.load_state_dict(weights)
    return module


def import_torch() -> Any:
    """The torch package; EdgeLstmError naming the extra when it is missing."""
    try:
        import torch
    except ImportError as error:
        raise EdgeLstmError(
            "this needs PyTorch, which is not installed", hint="pip install 'edgelstm[torch]'"
        ) from error
    return torch


def _read(path: Path) -> dict[str, Tensor]:
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise EdgeLstmError(
                f"{path} is not a .safetensors file, or is truncated", found=str(error)
            ) from error
    if suffix not in (".pt", ".pth", ".ckpt"):
        raise EdgeLstmError(
            f"weights {path}", found=suffix or "no suffix", expected=".safetensors, .pt or .pth"
        )
    torch = import_torch()
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        text = str(error)
        reason = next((line for line in text.splitlines() if "Unsupported" in line or "GLOBAL" in line), None)
        raise EdgeLstmError(
            f"{path} holds more than weights, or is damaged",
            found=(reason or (text.splitlines() or [type(error).__name__])[0]).strip(),
            expected="a file that torch.load(weights_only=True) takes",
            hint="Where you trust it, save its weights alone: torch.save(model.state_dict(), 'weights.pt')",
        ) from error
    for key in NESTED:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping):
        raise EdgeLstmError(f"{path}", found=type(data).__name__, expected="a state dict")
    tensors = {str(name): value for name, value in data.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise EdgeLstmError(f"{path} holds no tensors", found=f"keys {_listed([str(k) for k in data])}")
    return tensors


def _unprefixed(weights: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a wrapper's prefix off all names, where that makes them fit better."""
    for prefix in PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            bare = {name.removeprefix(prefix): value for name, value in weights.items()}
            if len(bare.keys() & wanted.keys()) > len(weights.keys() & wanted.keys()):
                weights = bare
    return weights


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not (name == error.name or name.startswith(error.name + ".")):
            raise EdgeLstmError(f"{name} needs {error.name}, which is not installed") from error
        raise EdgeLstmError(
            f"no Python module {name!r}",
            expected="package.module:factory, importable from this folder, or file.py:factory",
        ) from error
    except Exception as error:
        raise EdgeLstmError(f"importing {name} failed", found=f"{type(error).__name__}: {error}") from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise EdgeLstmError(f"{path} does not exist", hint="Check the path")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EdgeLstmError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up by name while it runs; its neighbours are imported from its folder.
    known = sys.modules.get(name)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EdgeLstmError(f"running {path} failed", found=f"{type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
        if known is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = known
    return module


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
