"""``SmallCell``: an LSTM or GRU cell whose frame, or whole window of frames, is one launch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.arrays import View, is_torch, on_gpu, stream_handle, view
from edgelstm.kernels.gates.launch import FLOAT, HALF, variant_of
from edgelstm.kernels.launch import Memory, device, kernel
from edgelstm.kernels.small_cell import launch, naive

Array = npt.NDArray[Any]
_TYPES = {"float32": FLOAT, "float16": HALF}


class SmallCell:
    """An LSTM or GRU cell of up to 1,024 units over a pool of states, for one GPU; on the CPU the NumPy reference.

    The pool is the caller's: ``h`` [R, H] and, for an LSTM, ``c`` [R, H] float32, replaced in place. ``rows`` says which row each
    stream of a call has, so streams join and leave without a copy. On a GPU the cell holds its weights and a workspace there until
    :meth:`close`; calls of one cell must not run at the same time.

    Made by :meth:`lstm`, :meth:`gru` or :meth:`from_torch`. variant: the LSTM's equations; None for a GRU.
    """

    def __init__(
        self,
        variant: GateVariant | None,
        weight: Any,
        bias: Any,
        recurrent_bias: Any = None,
        peepholes: Sequence[Any] = (),
        *,
        dtype: str = "float32",
        streams: int = 64,
    ) -> None:
        if dtype not in _TYPES:
            raise EdgeLstmError("dtype of a small cell", found=dtype, expected=" or ".join(_TYPES))
        self.variant, self.dtype, self.streams = variant, dtype, streams
        if variant is not None:
            variant_of(variant)  # refuses what the kernel does not have
        self._gates = 3 if variant is None else len(variant.gates)
        weight = _host(weight, np.dtype(dtype))
        if (
            weight.ndim != 2
            or weight.shape[0] % self._gates
            or weight.shape[1] * self._gates < weight.shape[0]
        ):
            raise EdgeLstmError(
                "weights of a small cell",
                found=list(weight.shape),
                expected=f"[{self._gates} * hidden, inputs + hidden]",
            )
        self.hidden = weight.shape[0] // self._gates
        self.inputs = weight.shape[1] - self.hidden
        if not 1 <= self.hidden <= launch.MOST_HIDDEN or not 1 <= streams <= launch.MOST_STREAMS:
            raise EdgeLstmError(
                "size of a small cell",
                found=f"{count_of(self.hidden, 'unit')}, {count_of(streams, 'stream')}",
                expected=f"1 to {launch.MOST_HIDDEN} units, 1 to {launch.MOST_STREAMS} streams",
            )
        self._weight = weight
        self._bias = _sized("bias", bias, self._gates * self.hidden)
        self._recurrent = _sized("recurrent_bias", recurrent_bias, self.hidden) if variant is None else None
        names = [] if variant is None else [n for n in variant.inputs if n.startswith("p_")]
        if len(peepholes) != len(names):
            raise EdgeLstmError("peepholes of a small cell", found=len(peepholes), expected=names or "none")
        self._peepholes = {n: _sized(n, p, self.hidden) for n, p in zip(names, peepholes, strict=True)}
        self._memory: dict[int, Memory] = {}
        self._closed = False
        #: Units of a block, a power of two; 0: as many as the plan chooses. For benches.
        self.units = 0

    @classmethod
    def lstm(
        cls,
        weight: Any,
        bias: Any,
        *,
        variant: GateVariant | None = None,
        peepholes: Sequence[Any] = (),
        dtype: str = "float32",
        streams: int = 64,
    ) -> SmallCell:
        """weight [gates * H, I + H], x's columns first, and bias [gates * H]; gates i, f, g, o (coupled: i, g, o). peepholes: p_i,
        p_f, p_o (coupled: no p_f), each [H]. dtype: of weights, x and h. streams: the most of one call."""
        return cls(variant or GateVariant(), weight, bias, None, peepholes, dtype=dtype, streams=streams)

    @classmethod
    def gru(
        cls, weight: Any, bias: Any, recurrent_bias: Any, *, dtype: str = "float32", streams: int = 64
    ) -> SmallCell:
        """weight [3H, I + H] and bias [3H] in the order r, z, n; recurrent_bias [H]: what is added to n's product with h
        before the reset gate (those of r and z belong to bias)."""
        return cls(None, weight, bias, recurrent_bias, dtype=dtype, streams=streams)

    @classmethod
    def from_torch(
        cls, module: Any, layer: int = 0, *, dtype: str = "float32", streams: int = 64
    ) -> SmallCell:
        """Of torch's LSTMCell and GRUCell, one layer of its LSTM or GRU (one direction), or edgelstm.nn's LSTM cells."""
        from torch import nn

        def numpy(tensor: Any) -> Array:
            array: Array = tensor.detach().float().cpu().numpy()
            return array

        name = type(module).__name__
        if isinstance(module, nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell):
            if getattr(module, "bidirectional", False) or getattr(module, "proj_size", 0):
                raise EdgeLstmError(
                    f"{name} as a small cell", found="two directions, or a projection", expected="neither"
                )
            suffix = f"_l{layer}" if isinstance(module, nn.LSTM | nn.GRU) else ""
            if not hasattr(module, f"weight_ih{suffix}"):
                raise EdgeLstmError(f"layer of {name}", found=layer, expected=f"below {module.num_layers}")
            parts = [numpy(getattr(module, f"weight_{k}{suffix}")) for k in ("ih", "hh")]
            rows, hidden = parts[1].shape
            b_x, b_h = (
                numpy(getattr(module, f"bias_{k}{suffix}")) if module.bias else np.zeros(rows, np.float32)
                for k in ("ih", "hh")
            )
            weight = np.concatenate(parts, 1)
            if isinstance(module, nn.LSTM | nn.LSTMCell):
                return cls.lstm(weight, b_x + b_h, dtype=dtype, streams=streams)
            bias = b_x.copy()
            bias[: 2 * hidden] += b_h[: 2 * hidden]
            return cls.gru(weight, bias, b_h[2 * hidden :], dtype=dtype, streams=streams)
        # By name: the room of torch's modules is not this one's to import.
        own = type(module).__module__.startswith("edgelstm.") and name in ("LSTMCell", "PeepholeLSTMCell")
        if not own:
            raise EdgeLstmError(
                "module of a small cell",
                found=name,
                expected="torch's LSTM, GRU, LSTMCell or GRUCell, or an LSTM cell of edgelstm.nn",
            )
        weights = [numpy(p) for p in (module.p_i, module.p_f, module.p_o)] if module.peephole else []
        variant = GateVariant(peephole=module.peephole)
        return cls.lstm(
            numpy(module.weight), numpy(module.bias), variant=variant, peepholes=weights, dtype=dtype, streams=streams
        )  # fmt: skip

    def __call__(
        self,
        x: Any,
        h: Any,
        c: Any = None,
        *,
        rows: Any = None,
        projected: Any = None,
        y: Any = None,
        stream: Any = None,
    ) -> Any:
        """Run one frame ``x`` [N, I], or T of them [T, N, I]; h and c are replaced. Returns y, [N, H] or [T, N, H].

        rows: int32 [N], each stream's row of h and c; a stream whose row is -1, or outside the pool, is idle: its frame is not read,
        its state and its part of y are not written. Default: 0 to N - 1. No row twice.
        projected: [N, gates * H] or [T, N, gates * H], added to the gates: products with x made beforehand. x is then None where the
        cell has no inputs. y: where to write it. stream: see :func:`edgelstm.kernels.arrays.stream_handle`. Returns at once.
        """
        given = x if x is not None else projected
        if self._closed:
            raise EdgeLstmError("this cell is closed")
        if given is None:
            raise EdgeLstmError("neither x nor projected is given")
        if not on_gpu(given):
            return self._on_host(x, h, c, rows, projected, y)
        handle = stream_handle(stream, given)
        if y is None:
            y = _empty(given, (*tuple(given.shape)[:-1], self.hidden))
        arrays = {"x": x, "projected": projected, "rows": rows, "h": h, "c": c, "y": y}
        views = {k: view(k, v, handle) for k, v in arrays.items() if v is not None}
        p = self.parameters(views)
        gpu = device(views["h"].device)
        memory = self._on(gpu.index)
        p.weights, p.bias, p.peepholes, p.workspace = memory.addresses
        if p.streams == 0:
            return y
        plan = launch.plan_of(p, gpu.processors, gpu.shared, self.units)
        if plan.shared_bytes > gpu.shared:
            raise EdgeLstmError(
                f"a cell of {count_of(self.hidden, 'unit')} and {count_of(p.streams, 'stream')}",
                found=f"{count_of(plan.shared_bytes, 'byte')} of shared memory a block",
                expected=f"at most {gpu.shared} on this GPU",
                hint="Fewer streams a call",
            )
        found = kernel(gpu.index, launch.SOURCE, launch.NAME, launch.defines(plan), plan.shared_bytes)
        found.launch(plan.blocks, launch.THREADS, plan, handle, together=plan.blocks > 1)
        return y

    def parameters(self, views: dict[str, View]) -> launch.Params:
        """What the kernel is given but weights and workspace. Raises EdgeLstmError where a tensor does not fit."""
        lead, steps, streams = self._lead({k: v.shape for k, v in views.items()})
        pool = views["h"].shape[0] if len(views["h"].shape) == 2 else -1
        for name, (dtype, shape) in self._wanted(lead, streams, pool).items():
            v = views.get(name)
            if v is not None and (v.dtype != dtype or v.shape != shape or not v.contiguous):
                found = f"{v.dtype}{list(v.shape)}{'' if v.contiguous else ', not contiguous'}"
                raise EdgeLstmError(f"{name} of a small cell", found=found, expected=f"{dtype}{list(shape)}")
            if v is not None and v.device != views["h"].device:
                raise EdgeLstmError(
                    f"{name} on another GPU than h", found=v.device, expected=views["h"].device
                )
        kind = launch.GRU if self.variant is None else launch.COUPLED if self.variant.coupled else launch.LSTM
        p = launch.Params(
            kind=kind, type=_TYPES[self.dtype], inputs=self.inputs, hidden=self.hidden, streams=streams, steps=steps, pool_rows=pool
        )  # fmt: skip
        if self.variant is not None:
            p.variant = variant_of(self.variant)
        for name, v in views.items():
            setattr(p, name, v.pointer)
        return p

    def packed(self) -> tuple[Array, Array, Array]:
        """Weights, biases and peepholes as the kernel reads them."""
        bias = np.zeros((4, self.hidden), np.float32)
        bias[: self._gates] = self._bias.reshape(self._gates, self.hidden)
        if self._recurrent is not None:
            bias[3] = self._recurrent
        peepholes = np.zeros((3, self.hidden), np.float32)
        for k, name in enumerate(("p_i", "p_f", "p_o")):
            if name in self._peepholes:
                peepholes[k] = self._peepholes[name]
        return pack(self._weight, self.inputs, self.hidden, self._gates), bias, peepholes

    def close(self) -> None:
        """Give the GPU's memory back. Calling it again does nothing."""
        self._closed = True
        while self._memory:
            self._memory.popitem()[1].close()

    def __enter__(self) -> SmallCell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on(self, index: int) -> Memory:
        if index not in self._memory:
            size = launch.workspace_bytes(self.streams, self.hidden, self._weight.itemsize)
            # Uploaded before this returns; the first call is not to be captured into a graph.
            self._memory[index] = Memory(device(index), [*self.packed(), np.zeros(size, np.uint8)])
        return self._memory[index]

    def _lead(self, shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[int, ...], int, int]:
        """The leading axes of x, T and N."""
        first = shapes.get("x", shapes.get("projected", ()))
        missing = {
            "h",
            *(("c",) if self.variant is not None else ()),
            *(("x",) if self.inputs else ()),
        } - set(shapes)
        extra = set() if self.variant is not None else {"c"} & set(shapes)
        if not self.inputs:
            extra |= {"x"} & set(shapes)
        if missing or extra:
            raise EdgeLstmError(
                f"arrays of a small cell: {'missing' if missing else 'too many'}",
                found=sorted(missing or extra),
            )
        if len(first) not in (2, 3) or 0 in first[:-2] or first[-2] > self.streams:
            raise EdgeLstmError(
                "frames of a small cell",
                found=list(first),
                expected=f"[N, ...] or [T, N, ...], N up to {self.streams}",
                hint="streams= says how many a call may have",
            )
        return first[:-1], first[0] if len(first) == 3 else 1, first[-2]

    def _wanted(
        self, lead: tuple[int, ...], streams: int, pool: int
    ) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {
            "x": (self.dtype, (*lead, self.inputs)),
            "projected": (self.dtype, (*lead, self._gates * self.hidden)),
            "rows": ("int32", (streams,)),
            "h": (self.dtype, (pool, self.hidden)),
            "c": ("float32", (pool, self.hidden)),
            "y": (self.dtype, (*lead, self.hidden)),
        }

    def _on_host(self, x: Any, h: Any, c: Any, rows: Any, projected: Any, y: Any) -> Any:
        arrays = {"x": x, "projected": projected, "rows": rows, "h": h, "c": c, "y": y}
        as_torch = is_torch(h)
        # Tensors on the CPU are seen as arrays, without a copy.
        seen = {
            k: v.detach().numpy() if is_torch(v) else np.asarray(v)
            for k, v in arrays.items()
            if v is not None
        }
        views = {
            k: View(0, v.shape, tuple(s // v.itemsize for s in v.strides), str(v.dtype), 0)
            for k, v in seen.items()
        }
        p = self.parameters(views)
        shape = (p.steps, p.streams)
        frames = seen["x"] if "x" in seen else np.zeros((*shape, 0), self.dtype)
        weight = self._weight
        if "projected" in seen:
            ones = np.eye(self._gates * self.hidden, dtype=weight.dtype)
            weight = np.concatenate([weight[:, : self.inputs], ones, weight[:, self.inputs :]], 1)
            frames = np.concatenate(
                [frames.reshape(*shape, -1), seen["projected"].reshape(*shape, -1)], axis=2
            )
        result = naive.run(
            self.variant, weight, self._bias, self._recurrent, tuple(p.astype(float) for p in self._peepholes.values()),
            frames.reshape(*shape, -1), seen["h"], seen.get("c"), seen.get("rows"), np.dtype(self.dtype),
        )  # fmt: skip
        if "y" not in seen:
            result = result.reshape(*tuple((x if x is not None else projected).shape)[:-1], self.hidden)
            return sys.modules["torch"].from_numpy(result) if as_torch else result
        lives = np.ones(p.streams, bool)
        if "rows" in seen:
            lives = (seen["rows"] >= 0) & (seen["rows"] < p.pool_rows)
        seen["y"].reshape(*shape, -1)[:, lives] = result[:, lives]
        return y


def pack(weight: Array, inputs: int, hidden: int, gates: int) -> Array:
    """[gates * H, I + H] as [H, gates, Ip + Hp]: each part padded with zeros to a multiple of 8."""
    padded = launch.to_eight(inputs)
    packed = np.zeros((hidden, gates, padded + launch.to_eight(hidden)), weight.dtype)
    rows = weight.reshape(gates, hidden, -1).transpose(1, 0, 2)
    packed[:, :, :inputs] = rows[:, :, :inputs]
    packed[:, :, padded : padded + hidden] = rows[:, :, inputs:]
    return packed


def _host(value: Any, dtype: np.dtype[Any]) -> Array:
    if is_torch(value):
        value = value.detach().float().cpu().numpy()
    array: Array = np.ascontiguousarray(value, dtype)
    return array


def _sized(name: str, value: Any, size: int) -> Array:
    array = _host(np.zeros(size) if value is None else value, np.dtype(np.float32))
    if array.shape != (size,):
        raise EdgeLstmError(f"{name} of a small cell", found=list(array.shape), expected=[size])
    return array


def _empty(like: Any, shape: tuple[int, ...]) -> Any:
    if is_torch(like):
        return like.new_empty(shape)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(like, cupy.ndarray):
        return cupy.empty(shape, like.dtype)
    raise EdgeLstmError(
        f"there is no way to make arrays of {type(like).__name__}", expected="y=, made by you"
    )
