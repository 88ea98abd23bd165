"""What the states of somebody else's ONNX file start at: said by the user beside the pair, or by the file as a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.files import check_file
from edgelstm.frontends.onnx.borders import Borders
from edgelstm.graph.signature import StateSpec
from edgelstm.passes.graph import Array

#: As ``export(states=...)`` takes a pair: the output's name, that and ``:VALUE``, or the two as a tuple.
Pairs = Mapping[str, "str | tuple[str, Any]"]


@dataclass(frozen=True)
class Named:
    """State pairs, input -> output, and what the states start at where that is not zeros: a number or an array."""

    pairs: dict[str, str]
    first: dict[str, Array]


def read_pairs(states: Pairs, outputs: Sequence[str], where: str) -> Named:
    """The pairs in ``states``, apart from their first values.

    ``OUTPUT:VALUE`` is read as a first value only where no output bears that whole name: names like ``Identity:0`` exist.
    VALUE is a number or the path of a ``.npy`` file. Raises EdgeLstmError for anything else.
    """
    pairs, first = {}, {}
    for name, said in states.items():
        value: Any = None
        if isinstance(said, tuple | list) and len(said) == 2 and isinstance(said[0], str):
            output, value = said
        elif isinstance(said, str):
            output = said
            if said not in outputs and ":" in said:
                # The longest name that fits: what follows it may be a path with a colon of its own.
                cuts = [k for k, c in enumerate(said) if c == ":" and said[:k] in outputs]
                cut = max(cuts, default=said.index(":"))
                output, value = said[:cut], said[cut + 1 :]
        else:
            raise EdgeLstmError(
                f"{where}: state {name!r}",
                found=type(said).__name__,
                expected='the name of the output that is fed back, or (name, first value) as in ("h_next", 1.0)',
                hint=f"On the command line: --state {name}=OUTPUT or --state {name}=OUTPUT:1.0 or OUTPUT:FILE.npy",
            )
        pairs[name] = output
        if value is not None:
            first[name] = _read(value, f"{where}: first value of state {name!r}")
    return Named(pairs, first)


def as_text(said: str | tuple[str, Any]) -> str:
    """A pair's second half as the command line has it; arrays have to be files there."""
    if not isinstance(said, tuple | list) or len(said) != 2:
        return str(said)
    output, value = said
    return f"{output}:{value if isinstance(value, int | float | str | Path) else 'FIRST.npy'}"


def take_defaults(model: onnx.ModelProto, states: Pairs) -> dict[str, Array]:
    """Defaults of inputs that are named as states: an input of the file that has a weight of its name.

    They are taken out of ``model``, in which such an input then is a plain one.
    """
    graph = model.graph
    named = {v.name for v in graph.input} & set(states)
    defaults = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in named}
    kept = [t for t in graph.initializer if t.name not in defaults]
    if defaults:
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)
    return defaults


def with_first(state: StateSpec, value: Array | None, borders: Borders, where: str) -> StateSpec:
    """``state`` starting at ``value``: one number for all of it, one stream's, or as the file has it for one stream."""
    if value is None:
        return state
    what = f"{where}: first value of state {state.name!r}"
    kind, shape = np_dtype(state.dtype), state.frame_shape
    axis = borders.input(state.input).axis
    if value.ndim and value.shape != shape:
        whole = [*shape]
        whole.insert(axis, 1)
        same = value.ndim == len(whole) and all(
            a == b or k == axis for k, (a, b) in enumerate(zip(value.shape, whole, strict=True))
        )
        rows = np.moveaxis(value, axis, 0) if same else None
        if rows is None or not (rows == rows[:1]).all():
            raise EdgeLstmError(
                what,
                found=f"{list(value.shape)}" + ("" if rows is None else ", different for each stream"),
                expected=f"a number, or {list(shape)}, one stream's state",
            )
        value = rows[0]
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.broadcast_to(value, shape).astype(kind)
    if not np.isfinite(value).all() or (
        kind.kind not in "f" and not (stored.astype(np.float64) == value).all()
    ):
        raise EdgeLstmError(
            what, found=f"{value.dtype}, {value.reshape(-1)[:3]}", expected=f"finite, a {state.dtype}"
        )
    if kind.kind == "f" and not np.isfinite(stored).all():
        raise EdgeLstmError(what, found="a number too large for it", expected=f"a {state.dtype}")
    bytes_ = np.ascontiguousarray(stored).astype(kind.newbyteorder("<")).tobytes()
    return replace(state, initial=bytes_ if stored.any() else None)


def _read(value: Any, what: str) -> Array:
    if isinstance(value, str | Path) and not _is_number(value):
        path = Path(value)
        if path.suffix.lower() != ".npy":
            raise EdgeLstmError(what, found=str(value), expected="a number or a .npy file")
        try:
            value = np.load(check_file(path), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise EdgeLstmError(
                f"{what}: can't read {path}", found=str(error), expected="a .npy file"
            ) from error
    try:
        array = np.asarray(float(value) if isinstance(value, str) else value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise EdgeLstmError(what, found=f"{array.dtype}", expected="numbers")
    return array


def _is_number(value: str | Path) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
