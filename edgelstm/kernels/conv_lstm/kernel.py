"""``ConvLstmKernel``: a ConvLSTM step on torch tensors in one kernel, and the same compiled ahead for a GPU that is not here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.conv_lstm import naive

if TYPE_CHECKING:
    from torch import Tensor

_TRITON = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_TENSORS = ("x", "h", "w_x", "w_h", "bias", "p_i", "p_f", "p_o", "active", "c", "c_out", "h_out")


@dataclass(frozen=True)
class Tile:
    """How a step is cut: places, channels and input channels of a program; its warps; loads in flight."""

    places: int = 64
    channels: int = 32
    inputs: int = 16
    warps: int = 4
    stages: int = 4


@dataclass(frozen=True)
class Ahead:
    """A kernel compiled ahead. cubin: machine code; ptx: what it was made of; name: of its entry; shared: bytes a block needs."""

    cubin: bytes
    ptx: str
    name: str
    shared: int
    warps: int


class ConvLstmKernel:
    """A ConvLSTM cell: stride 1, zero padding, odd square kernel; any :class:`GateVariant` but 8-bit z.

    weight [gates * C, I + C, K, K], x's channels first, gates i, f, g, o (coupled: i, g, o); bias [gates * C]; peepholes p_i, p_f, p_o
    (coupled: no p_f), each [C] or [C, H, W]. dtype: of weights, x and h: float16, bfloat16 or float32; c may be fp32 or
    fp16. On the CPU the same is computed by torch's operators; on a GPU it needs triton, which PyTorch's CUDA builds bring.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        peepholes: Sequence[Tensor] = (),
        *,
        variant: GateVariant | None = None,
        dtype: str = "float16",
        device: Any = "cpu",
        tile: Tile | None = None,
    ) -> None:
        import torch

        self.variant = variant = variant or GateVariant()
        if dtype not in _TRITON or variant.coded:
            raise EdgeLstmError(
                "a ConvLSTM kernel",
                found=f"{dtype}{', coded z' if variant.coded else ''}",
                expected=", ".join(_TRITON),
            )
        gates = len(variant.gates)
        rows, joined, k, k2 = weight.shape if weight.ndim == 4 else (0, 0, 0, 0)
        self.channels, self.inputs, self.size = rows // gates, joined - rows // gates, k
        if (
            rows == 0
            or rows % gates
            or self.inputs < 0
            or k != k2
            or k % 2 == 0
            or tuple(bias.shape) != (rows,)
        ):
            raise EdgeLstmError(
                "weights of a ConvLSTM kernel",
                found=f"{list(weight.shape)}, bias {list(bias.shape)}",
                expected=f"[{gates} * C, I + C, K, K] with an odd K, bias [{gates} * C]",
            )
        names = [name for name in variant.inputs if name.startswith("p_")]
        if len(peepholes) != len(names):
            raise EdgeLstmError(
                "peepholes of a ConvLSTM kernel", found=len(peepholes), expected=names or "none"
            )
        kind = getattr(torch, dtype)
        self.dtype, self.tile = kind, tile or Tile()
        self.weight = weight.detach().to(device=device, dtype=kind)
        self.bias = bias.detach().to(device=device, dtype=torch.float32)
        self.peepholes = [p.detach().to(device=device, dtype=torch.float32) for p in peepholes]
        # [K * K, inputs, gates, C]: a tap's weights of one input channel for all gates side by side.
        packed = self.weight.reshape(gates, self.channels, joined, k * k).permute(3, 2, 0, 1)
        self._packed = [packed[:, : self.inputs].contiguous(), packed[:, self.inputs :].contiguous()]
        self._named = dict(zip(names, self.peepholes, strict=True))
        self._spread: dict[tuple[int, int], dict[str, Tensor]] = {}

    def new_state(
        self, streams: int, height: int, width: int, *, c_dtype: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(h, another h, c) of zeros, channels last. A step reads one h and writes the other."""
        import torch

        shape = (streams, self.channels, height, width)
        kinds = (self.dtype, self.dtype, c_dtype or torch.float32)
        h, other, c = (
            torch.zeros(shape, dtype=kind, device=self.weight.device).to(memory_format=torch.channels_last)
            for kind in kinds
        )
        return h, other, c

    def __call__(
        self,
        x: Tensor | None,
        h: Tensor,
        c: Tensor,
        h_out: Tensor,
        c_out: Tensor | None = None,
        active: Tensor | None = None,
    ) -> None:
        """One step: x [N, I, H, W], h and c [N, C, H, W] into h_out and c_out (default: c itself), all channels last.

        A stream whose ``active`` (int32 [N]) is 0 keeps both: they are copied bit for bit. h_out must not be h.
        """
        c_out = c if c_out is None else c_out
        self._check(x, h, c, h_out, c_out, active)
        if not h.is_cuda:
            # Products are summed in float32, as tensor cores do.
            new = naive.step(self.variant, self.weight.float(), self.bias, self.peepholes, x, h, c, active)
            h_out.copy_(new[0])
            c_out.copy_(new[1])
            return
        self._launch(x, h, c, h_out, c_out, active)

    def _launch(self, x: Any, h: Any, c: Any, h_out: Any, c_out: Any, active: Any) -> None:
        """The kernel itself; the interpreter of triton runs it on the CPU, for the tests."""
        kernel = _triton_kernel()
        n, _, height, width = h.shape
        if n == 0:
            return
        constants = self._constants(height, width, active is not None)
        peepholes = self._maps(height, width)
        tile = self.tile
        grid = (n * -(-height * width // tile.places), -(-self.channels // tile.channels))
        given = (x if x is not None else h, h, *self._packed, self.bias)
        maps = tuple(peepholes.get(name, self.bias) for name in ("p_i", "p_f", "p_o"))
        rest = (active if active is not None else self.bias, c, c_out, h_out)
        import torch

        # Triton launches on the current GPU, which need not be the tensors'.
        with torch.cuda.device(h.device) if h.is_cuda else contextlib.nullcontext():
            kernel[grid](*given, *maps, *rest, **constants, **_options(tile))

    def compile_ahead(
        self,
        capability: tuple[int, int],
        height: int,
        width: int,
        *,
        c_dtype: str = "float32",
        active: bool = False,
    ) -> Ahead:
        """The kernel for maps of one size and GPUs of a compute capability such as (9, 0), made without a GPU."""
        kernel, tile = _triton_kernel(), self.tile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        held = _TRITON[str(self.dtype).removeprefix("torch.")]
        kinds = dict.fromkeys(_TENSORS, f"*{held}") | dict.fromkeys(("bias", "p_i", "p_f", "p_o"), "*fp32")
        kinds |= {"active": "*i32"} if active else {"active": "*fp32"}
        kinds |= dict.fromkeys(("c", "c_out"), f"*{_TRITON[c_dtype]}")
        constants = self._constants(height, width, active)
        aligned = {(k,): [["tt.divisibility", 16]] for k in range(len(_TENSORS))}
        source = ASTSource(kernel, signature=kinds, constexprs=constants, attrs=aligned)
        arch = capability[0] * 10 + capability[1]
        made = compile(source, target=GPUTarget("cuda", arch, 32), options=_options(tile))
        return Ahead(made.asm["cubin"], made.asm["ptx"], made.metadata.name, made.metadata.shared, tile.warps)

    def _constants(self, height: int, width: int, active: bool) -> dict[str, Any]:
        v, tile = self.variant, self.tile
        return {
            "H": height, "W": width, "INPUTS": self.inputs, "C": self.channels, "K": self.size,
            "PEEPHOLE": v.peephole, "HARD": v.gate == "hard_sigmoid", "ALPHA": float(np.float32(v.alpha)),
            "BETA": float(np.float32(v.beta)), "G_RELU": v.candidate == "relu", "H_RELU": v.output == "relu",
            "CLIP": float(np.float32(v.cell_clip or 0.0)), "COUPLED": v.coupled, "ACTIVE": active,
            "BM": tile.places, "BC": tile.channels, "BK": tile.inputs, "PRECISION": "ieee",
        }  # fmt: skip

    def _maps(self, height: int, width: int) -> dict[str, Tensor]:
        """Peepholes as [H, W, C]."""
        if (height, width) not in self._spread:
            self._spread[height, width] = {
                name: (p.reshape(-1, 1, 1) if p.ndim == 1 else p)
                .expand(self.channels, height, width)
                .permute(1, 2, 0)
                .contiguous()
                for name, p in self._named.items()
            }
        return self._spread[height, width]

    def _check(self, x: Any, h: Any, c: Any, h_out: Any, c_out: Any, active: Any) -> None:
        import torch

        n, height, width = (h.shape[0], *h.shape[2:]) if h.ndim == 4 else (-1, -1, -1)
        state = (n, self.channels, height, width)
        floats = (torch.float32, torch.float16)
        wanted: list[tuple[str, Any, tuple[int, ...], tuple[Any, ...]]] = [
            ("h", h, state, (self.dtype,)),
            ("h_out", h_out, state, (self.dtype,)),
            ("c", c, state, floats),
            ("c_out", c_out, state, (c.dtype,)),
        ]
        if (x is None) != (self.inputs == 0):
            raise EdgeLstmError(
                "x of a ConvLSTM step", found=x, expected=f"{count_of(self.inputs, 'channel')}"
            )
        if x is not None:
            wanted.append(("x", x, (n, self.inputs, height, width), (self.dtype,)))
        for name, tensor, shape, kinds in wanted:
            last = tensor.ndim == 4 and tensor.permute(0, 2, 3, 1).is_contiguous()
            if tuple(tensor.shape) != shape or tensor.dtype not in kinds or not last:
                raise EdgeLstmError(
                    f"{name} of a ConvLSTM step",
                    found=f"{tensor.dtype}{list(tensor.shape)}{'' if last else ', not channels last'}",
                    expected=f"{' or '.join(map(str, kinds))}{list(shape)}, channels last",
                    hint="tensor.to(memory_format=torch.channels_last)",
                )
            if tensor.device != self.weight.device:
                raise EdgeLstmError(
                    f"{name} of a ConvLSTM step", found=tensor.device, expected=self.weight.device
                )
        if height * width * max(self.inputs, self.channels) >= 2**31:
            raise EdgeLstmError("a stream of a ConvLSTM step", expected="fewer than 2^31 values")
        if h.data_ptr() == h_out.data_ptr() and h.numel():
            raise EdgeLstmError(
                "h_out is h", hint="Neighbours still read h: give another tensor, and swap the two"
            )
        if active is not None and (active.dtype != torch.int32 or tuple(active.shape) != (n,)):
            raise EdgeLstmError("active", found=f"{active.dtype}{list(active.shape)}", expected=f"int32[{n}]")


def _options(tile: Tile) -> dict[str, Any]:
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def _triton_kernel() -> Any:
    try:
        from edgelstm.kernels.conv_lstm.triton_kernel import conv_lstm_step
    except ImportError as error:
        raise EdgeLstmError(
            "the ConvLSTM kernel needs triton, which is not installed",
            hint="pip install triton (PyTorch's CUDA builds bring it along)",
        ) from error
    return conv_lstm_step
