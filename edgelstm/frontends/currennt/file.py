"""CURRENNT's network files (.jsn): read, checked, and their weights as they lie there.

The file (Weninger, Bergmann & Schuller 2015, JMLR 16; the layout is that of CURRENNT's own layers) lists ``layers``, each
with name, type, size and ``bias``, a number its bias weights are multiplied with, and for each layer's name ``weights``:

- feedforward_*, softmax: ``input`` [size, below], ``bias`` [size], ``internal`` empty.
- lstm: ``input`` [4, size, below] and ``bias`` [4, size] in the order cell input, input, forget, output gate; ``internal`` is
  the recurrent weights [4, size, size] and then the peepholes of input, forget and output gate [3, size].
- blstm: the same for a half of ``size`` in each direction. In every axis of ``size`` the first half runs forwards, the
  second backwards; the recurrent weights are [4, 2, half, half].

Gates are logistic, cell input and cell output tanh; input and forget gate see the old cell state, the output gate the new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, read_bytes

Float32 = npt.NDArray[np.float32]

#: CURRENNT writes about 28 bytes a number. Parsed, a number or text of few bytes takes up to 60, an empty list 64: so what
#: parsing takes, 2 GiB at most, is settled by counting before.
MAX_BYTES = 256 * 1024**2
MAX_NUMBERS = 2**24
MAX_LISTS = 10_000
MAX_KEYS = 100_000
MAX_SIZE = 2**20
MAX_LAYERS = 1000

RECURRENT = ("lstm", "blstm")
#: ONNX operator of an activation. feedforward_relu is of the fork by the National Institute of Informatics.
FEEDFORWARD: Mapping[str, str | None] = {
    "feedforward_tanh": "Tanh",
    "feedforward_logistic": "Sigmoid",
    "feedforward_identity": None,
    "feedforward_relu": "Relu",
    "softmax": "Softmax",
}
#: What compares outputs with targets in training; a network that runs has no use for it.
POST_OUTPUT = (
    *("sse", "weightedsse", "rmse", "ce", "wf", "sse_mask"),
    *("binary_classification", "multiclass_classification"),
)


@dataclass(frozen=True, eq=False)
class CurrenntLayer:
    """One layer that computes. input, bias and internal are flat, in the file's order; ``scale`` multiplies the bias weights."""

    name: str
    kind: str
    size: int
    below: int
    scale: float
    input: Float32
    bias: Float32
    internal: Float32

    @property
    def directions(self) -> int:
        """2 where the layer also runs backwards."""
        return 2 if self.kind == "blstm" else 1

    @property
    def scaled_bias(self) -> Float32:
        """The biases as they are added, in the file's order."""
        return (self.bias.astype(np.float64) * self.scale).astype(np.float32)


@dataclass(frozen=True, eq=False)
class CurrenntNetwork:
    """A network as its file tells it: numbers of one frame, and the layers from the input to the output."""

    where: str
    inputs: int
    layers: tuple[CurrenntLayer, ...]

    @property
    def backwards(self) -> str | None:
        """The first layer that needs whole sequences."""
        return next((layer.name for layer in self.layers if layer.kind == "blstm"), None)


def load_currennt(path: PathLike) -> CurrenntNetwork:
    """Read a .jsn file.

    Raises EdgeLstmError for a file that is missing, too large or no JSON; for layers that are unknown, nameless, of a size
    that is no number or does not fit the next; for weights that are missing, too few, too many, or no finite float32.
    """
    where = str(path)
    raw = read_bytes(path, MAX_BYTES)
    for what, count, most in (
        ("numbers", raw.count(b","), MAX_NUMBERS),
        ("lists and objects", raw.count(b"[") + raw.count(b"{"), MAX_LISTS),
        ("keys", raw.count(b":"), MAX_KEYS),
    ):
        if count > most:
            raise EdgeLstmError(f"{where} is too large", found=f"{count} {what}", expected=f"at most {most}")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise EdgeLstmError(
            f"{where} is not JSON", found=str(error)[:120], expected="a .jsn file CURRENNT wrote"
        ) from error
    listed = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(listed, list) or not 2 <= len(listed) <= MAX_LAYERS:
        found = f"{count_of(len(listed), 'layer')}" if isinstance(listed, list) else "no list 'layers'"
        raise EdgeLstmError(
            f"{where} is no CURRENNT network", found=found, expected="an object with 2 layers or more"
        )
    weights = data.get("weights")
    if not isinstance(weights, dict):
        raise EdgeLstmError(
            f"{where} has no weights",
            found=type(weights).__name__ if weights is not None else None,
            expected="an object 'weights'",
            hint="This is the network before training: give the file CURRENNT saved (--save_network)",
        )
    return _network(where, listed, weights)


def _network(where: str, listed: Sequence[Any], weights: Mapping[str, Any]) -> CurrenntNetwork:
    heads = [_head(where, k, entry) for k, entry in enumerate(listed)]
    names = [name for name, _, _ in heads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EdgeLstmError(f"{where}: two layers of one name", found=twice[0], expected="names of their own")
    if heads[0][1] != "input":
        raise EdgeLstmError(f"{where}: the first layer", found=heads[0][1], expected="a layer of type input")
    inputs = below = heads[0][2]
    layers: list[CurrenntLayer] = []
    for k, (name, kind, size) in enumerate(heads[1:], 1):
        what = f"{where}: layer {name!r}"
        if kind in POST_OUTPUT:
            if k + 1 < len(heads):
                raise EdgeLstmError(
                    f"{what}, type {kind}, is not the last", expected="a single one, at the end"
                )
            if size != below:
                raise EdgeLstmError(f"{what}: size", found=size, expected=f"{below}, the output layer's")
            break
        if kind not in RECURRENT and kind not in FEEDFORWARD:
            raise EdgeLstmError(
                f"{what}: unknown type",
                found=kind[:40],
                expected=f"one of {', '.join([*RECURRENT, *FEEDFORWARD])}, and at the end a post-output layer",
            )
        layers.append(_layer(what, name, kind, size, below, listed[k], weights))
        below = size
    if not layers:
        raise EdgeLstmError(
            f"{where}: no layer between input and post-output layer", expected="at least one that computes"
        )
    return CurrenntNetwork(where, inputs, tuple(layers))


def _head(where: str, k: int, entry: Any) -> tuple[str, str, int]:
    """Name, type and size of layer ``k``."""
    if not isinstance(entry, dict):
        raise EdgeLstmError(f"{where}: layer {k}", found=type(entry).__name__, expected="an object")
    name, kind, size = (entry.get(key) for key in ("name", "type", "size"))
    for key, value in (("name", name), ("type", kind)):
        # What can't be printed can't be the name of a tensor.
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
            raise EdgeLstmError(
                f"{where}: {key} of layer {k}", found=ascii(value)[:80], expected="a text of 1 to 200 letters"
            )
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        raise EdgeLstmError(
            f"{where}: size of layer {name!r}",
            found=ascii(size)[:40],
            expected=f"a whole number, 1 to {MAX_SIZE}",
        )
    return str(name), str(kind), size


def _layer(
    what: str,
    name: str,
    kind: str,
    size: int,
    below: int,
    entry: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> CurrenntLayer:
    if kind == "blstm" and size % 2:
        raise EdgeLstmError(f"{what}: size of a blstm", found=size, expected="an even number: half each way")
    scale = entry.get("bias")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < 1e30:
        raise EdgeLstmError(
            f"{what}: bias",
            found=ascii(scale)[:40],
            expected="a finite number: what its bias weights are multiplied with",
        )
    found = weights.get(name)
    if not isinstance(found, dict):
        raise EdgeLstmError(
            f"{what} has no weights",
            found=f"weights of {', '.join(list(weights)[:8])}"[:200] if weights else "none",
            expected=f"an object weights/{name}",
        )
    blocks = 4 if kind in RECURRENT else 1
    inner = size // 2 if kind == "blstm" else size
    counts = {
        "input": (
            blocks * size * below,
            f"{blocks} x {size} x {below}" if blocks > 1 else f"{size} x {below}",
        ),
        "bias": (blocks * size, f"{blocks} x {size}" if blocks > 1 else f"{size}"),
        "internal": (
            size * (4 * inner + 3) if kind in RECURRENT else 0,
            f"4 x {size} x {inner} recurrent and 3 x {size} peephole" if kind in RECURRENT else "none",
        ),
    }
    arrays = {
        part: _numbers(f"{what}: weights/{part}", found.get(part), count, told)
        for part, (count, told) in counts.items()
    }
    # Half of float32's range: the sum of the bias and anything sensible stays in it.
    largest = float(np.abs(arrays["bias"]).max()) * abs(float(scale))
    if largest > float(np.finfo(np.float32).max) / 2:
        raise EdgeLstmError(
            f"{what}: bias times its bias weights",
            found=f"{largest:g} at the largest",
            expected="finite float32",
        )
    return CurrenntLayer(name, kind, size, below, float(scale), **arrays)


def _numbers(what: str, found: Any, count: int, told: str) -> Float32:
    """``count`` numbers as float32; counted before anything is allocated."""
    expected = f"{count_of(count, 'number')} ({told})"
    if not isinstance(found, list):
        raise EdgeLstmError(
            f"{what} missing" if found is None else what,
            found=None if found is None else type(found).__name__,
            expected=expected,
        )
    if len(found) != count:
        raise EdgeLstmError(what, found=f"{count_of(len(found), 'number')}", expected=expected)
    bad = next((k for k, v in enumerate(found) if type(v) not in (int, float) or not _fits(v)), None)
    if bad is not None:
        raise EdgeLstmError(f"{what}[{bad}]", found=ascii(found[bad])[:40], expected="a finite float32")
    return np.array(found, np.float32)


def _fits(value: float) -> bool:
    # Comparing an int of any length with a float is exact, and False for NaN.
    return abs(value) <= float(np.finfo(np.float32).max)
