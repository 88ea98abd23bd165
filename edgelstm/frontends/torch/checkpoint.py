"""Weights in files, read without running anything: .safetensors, and what torch saved, by ``weights_only`` alone.

Training frameworks put more into a checkpoint than weights. Where that is only *named* there (Lightning notes the
classes of its callbacks), the name is passed over, and so are NumPy's numbers: nothing is imported. Whatever else would
have to be called to be read is refused, with the key of the checkpoint it lies under.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import MAX_FILE_BYTES, PathLike, check_file

if TYPE_CHECKING:
    from torch import Tensor

#: Suffixes of what torch saves.
SUFFIXES = (".pt", ".pth", ".ckpt")
#: Pickles of anything: scikit-learn's, joblib's, a whole model. Never opened.
PICKLES = (".pkl", ".pickle", ".joblib")
#: Where training frameworks put a state dict inside a checkpoint.
NESTED = ("state_dict", "model_state_dict", "model", "net")
#: The pickle inside a checkpoint holds names and sizes, not weights; a larger one is no checkpoint.
MAX_PICKLE_BYTES = 64 * 1024**2
#: Names listed in a message before the rest is only counted.
LISTED = 5


def read_tensors(path: PathLike) -> dict[str, Tensor]:
    """Every tensor of a state dict, by name, on the CPU; the state dict may lie under one of :data:`NESTED`.

    Raises EdgeLstmError for a file that is missing, damaged, or no weights; for pickles; and for one that holds what
    ``weights_only`` refuses, naming it and its key.
    """
    source = Path(path)
    check_file(source)
    suffix = source.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(source)
    if suffix in PICKLES:
        raise EdgeLstmError(
            f"{source} is a pickle, which can run any code when it is opened",
            found=suffix,
            expected="weights alone: .safetensors, .pt or .pth",
            hint="Where you trust it, save its weights: torch.save(model.state_dict(), 'weights.pt')",
        )
    if suffix not in SUFFIXES:
        raise EdgeLstmError(
            f"weights {source}", found=suffix or "no suffix", expected=".safetensors, .pt or .pth"
        )
    return _state_dict(source, _load(source))


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _read_safetensors(source: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(source))
    except SafetensorError as error:
        raise EdgeLstmError(
            f"{source} is not a .safetensors file, or is truncated", found=str(error)
        ) from error


def _load(source: Path) -> Any:
    from edgelstm.frontends.torch.package import import_torch
    from edgelstm.frontends.torch.torchscript import is_torchscript

    torch = import_torch()
    _check_archive(source)
    if is_torchscript(source):
        raise EdgeLstmError(
            f"{source} is a TorchScript module, with its code, not weights for one",
            hint=f"Export it by itself: edgelstm export {source}",
        )

    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True)

    try:
        return load()
    except Exception as error:  # pickle, zip and torch each have their own
        refused = error
    names = _refused_names(torch, source)
    try:
        # Of these names nothing is imported: each stands for a class that does nothing or can't be called.
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
            if names:
                return load()
    except Exception as error:
        refused = error
    raise _refusal(source, names, refused) from refused


def _check_archive(source: Path) -> None:
    """torch stores its tensors as they are: an archive that unpacks to more than a file may hold is an attack."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        if unpacked > MAX_FILE_BYTES:
            raise EdgeLstmError(
                f"{source} is too large",
                found=f"{count_of(unpacked, 'byte')} unpacked",
                expected=f"at most {MAX_FILE_BYTES}",
            )


def _state_dict(source: Path, data: Any) -> dict[str, Tensor]:
    import torch

    if isinstance(data, Mapping):
        for key in NESTED:
            if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
                data = data[key]
        inner = [v for v in data.values() if isinstance(v, Mapping) and _tensors(v)]
        if not _tensors(data) and len(inner) == 1:
            data = inner[0]
    if not isinstance(data, Mapping):
        raise EdgeLstmError(f"{source}", found=type(data).__name__, expected="a state dict")
    tensors = {str(name): value for name, value in data.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise EdgeLstmError(f"{source} holds no tensors", found=f"keys {listed([str(k) for k in data])}")
    return tensors


def _tensors(data: Mapping[Any, Any]) -> bool:
    import torch

    return any(isinstance(value, torch.Tensor) for value in data.values())


# -- what weights_only refuses ------------------------------------------------------------------------------------


class _CalledError(Exception):
    """Something in a checkpoint that is more than named."""


class _Nothing:
    """In place of a NumPy number or dtype: notes on a training, none of the weights."""

    def __new__(cls, *args: Any) -> _Nothing:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Whatever it is."""


def _stand_in(name: str) -> type:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise _CalledError(name)

    short = name.rpartition(".")[2] or "Named"
    return type(short, (_Nothing,), {} if name.startswith("numpy.") else {"__new__": refuse})


def _refused_names(torch: Any, source: Path) -> list[str]:
    try:
        return [str(name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(source)]
    except Exception:  # no zip archive, or one that is damaged
        return []


def _refusal(source: Path, names: list[str], error: Exception) -> EdgeLstmError:
    hint = "Where you trust it, save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
    expected = "a file that torch.load(weights_only=True) takes"
    called = next((name for name in names if isinstance(error, _CalledError) and error.args == (name,)), None)
    name = called or (names[0] if names else None)
    if name is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), None)
        reason = (
            reason.partition(" was not an allowed")[0] if reason else (lines or [type(error).__name__])[0]
        )
        return EdgeLstmError(
            f"{source} holds more than weights, or is damaged",
            found=reason,
            expected=expected,
            hint=hint,
        )
    key = _key_of(source, name)
    if key is None:
        return EdgeLstmError(
            f"{source} holds more than weights", found=f"a pickled {name}", expected=expected, hint=hint
        )
    return EdgeLstmError(
        f"{source} holds more than weights, under the key {key!r}",
        found=f"a pickled {name}",
        expected=expected,
        hint=hint,
    )


_STORES, _FETCHES = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_FILLS = ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BUILD")
#: Modules of Python 2, whose names protocol 2 still writes.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(eq=False)
class _Item:
    """What lies on a pickle machine's stack: its text if it is one, and the names of classes and functions within."""

    text: str | None = None
    names: set[str] = field(default_factory=set)


_MARK = _Item()


def _key_of(source: Path, name: str) -> str | None:
    """The key of the outermost dictionary under which ``name`` lies, from the pickle's opcodes, none of which runs.

    What an opcode takes off the stack is within what it puts there; ``pickletools`` says how much that is.
    """
    stack: list[_Item] = []
    memo: dict[object, _Item] = {}
    for opcode, argument in _opcodes(source):
        if opcode.name in _STORES:
            memo[len(memo) if opcode.name == "MEMOIZE" else argument] = stack[-1]
            continue
        if opcode.name in _FETCHES:
            stack.append(memo.get(argument, _Item()))
            continue
        taken = _take(stack, opcode.stack_before)
        if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if argument else [str(item.text) for item in taken]
            stack.append(_Item(names={".".join([_RENAMED.get(parts[0], parts[0]), *parts[1:]])}))
        elif opcode.name in _FILLS and taken:
            container, *items = taken
            if not stack and "SETITEM" in opcode.name:
                for key, value in zip(items[::2], items[1::2], strict=False):
                    if name in value.names and key.text is not None:
                        return key.text
            container.names.update(*(item.names for item in items))
            stack.append(container)
        else:
            text = argument if isinstance(argument, str) else None
            within = {each for item in taken for each in item.names}
            stack += [
                _MARK if kind is pickletools.markobject else _Item(text, set(within))
                for kind in opcode.stack_after
            ]
    return None


def _take(stack: list[_Item], before: Sequence[object]) -> list[_Item]:
    """Take off the stack what an opcode needs: so many items, and all above the last mark if it needs one."""
    above: list[_Item] = []
    if pickletools.markobject in before:
        before = before[: before.index(pickletools.markobject)]
        while stack and (item := stack.pop()) is not _MARK:
            above.insert(0, item)
    place = max(0, len(stack) - len(before))
    below, stack[place:] = stack[place:], []
    return [*below, *above]


def _opcodes(source: Path) -> Any:
    """The opcodes of the checkpoint's pickle; none where it can't be found or makes no sense."""
    try:
        with zipfile.ZipFile(source) as archive:
            inside = next(i for i in archive.infolist() if i.filename.endswith("/data.pkl"))
            if inside.file_size > MAX_PICKLE_BYTES:
                return []
            data = archive.read(inside)
        return [(opcode, argument) for opcode, argument, _ in pickletools.genops(data)]
    except (zipfile.BadZipFile, OSError, ValueError, StopIteration, EOFError):
        return []
