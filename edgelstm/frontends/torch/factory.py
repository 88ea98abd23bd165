"""Factories named on the command line, and weights files loaded into the modules they make."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike
from edgelstm.frontends.torch.checkpoint import listed, read_tensors
from edgelstm.frontends.torch.package import import_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Prefixes that wrappers (DataParallel, torch.compile, Lightning) put in front of every name.
PREFIXES = ("module.", "_orig_mod.", "model.")


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
                expected=f"one of {listed(names)}",
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


def random_weights(module: nn.Module, spec: str, kwargs: Mapping[str, Any] | None = None) -> list[str]:
    """Names of what is drawn at random in ``module``, which ``spec`` made: what another call makes otherwise."""
    torch = import_torch()
    with torch.random.fork_rng(devices=[]):
        torch.random.seed()
        again = resolve(spec, kwargs).state_dict()
    return [
        name
        for name, value in module.state_dict().items()
        if name not in again or not torch.equal(value, again[name])
    ]


def load_weights(module: nn.Module, path: PathLike) -> nn.Module:
    """Load a .safetensors, .pt or .pth file into ``module`` and return it; every tensor must fit, by name and shape.

    A state dict may lie under one of ``checkpoint.NESTED``, and its names may bear one of :data:`PREFIXES`. Nothing is
    unpickled but tensors (``weights_only``). Raises EdgeLstmError naming the tensors that are missing, left over
    or of another shape, and for a module that hides cells from its own state dict.
    """
    weights = read_tensors(path)
    wanted = dict(module.state_dict())
    weights = _unprefixed(weights, wanted)
    problems = []
    # Counters of BatchNorm that older checkpoints lack and no forward in evaluation mode reads.
    missing = [n for n in wanted if n not in weights and not n.endswith("num_batches_tracked")]
    left_over = [name for name in weights if name not in wanted]
    misshapen = [
        f"{name} {list(weights[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    for label, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen)):
        if names:
            problems.append(f"{len(names)} {label}: {listed(names)}")
    if problems:
        raise EdgeLstmError(
            f"{path} does not fit {type(module).__name__}",
            found="; ".join(problems),
            expected=f"its {count_of(len(wanted), 'tensor')}",
            hint="Was the factory called with the arguments the model was trained with? See --init",
        )
    if (place := _hidden(module)) is not None:
        raise EdgeLstmError(
            f"{path} can't hold all weights of {type(module).__name__}",
            found=f"modules in a plain list or dictionary, {place}, which torch does not see",
            expected="torch.nn.ModuleList or ModuleDict, whose weights are saved and loaded with the rest",
            hint="What was not saved is lost: the model has to be trained again",
        )
    module.load_state_dict(weights, strict=False)
    return module


def _unprefixed(weights: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a wrapper's prefix off all names, where that makes them fit better."""
    first = next(iter(weights), "")
    own = tuple(first[: k + 1] for k, letter in enumerate(first) if letter == ".")
    for prefix in dict.fromkeys((*PREFIXES, *own)):
        if weights and all(name.startswith(prefix) for name in weights):
            bare = {name.removeprefix(prefix): value for name, value in weights.items()}
            if len(bare.keys() & wanted.keys()) > len(weights.keys() & wanted.keys()):
                weights = bare
    return weights


def _hidden(module: nn.Module) -> str | None:
    """Where a module keeps modules with weights that are not registered with it."""
    seen = set(module.modules())
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name.startswith("_"):
                continue
            inside = (
                value.values()
                if isinstance(value, dict)
                else value
                if isinstance(value, list | tuple)
                else ()
            )
            for item in inside:
                is_module = hasattr(item, "state_dict") and hasattr(item, "modules")
                if is_module and item not in seen and item.state_dict():
                    return f"{path}.{name}" if path else name
    return None


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
