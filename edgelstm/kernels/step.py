"""``ConvLstmStep``: a ConvLSTM layer as a step on one GPU without TensorRT: cuDNN's convolution and our gates, in one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.gates.torch_op import register_torch

if TYPE_CHECKING:
    from torch import Tensor


class ConvLstmStep:
    """Streams of one ConvLSTM layer, stepped together; the state stays where it is, and a step is one graph.

    The convolution reads x and h and writes z; the gates replace h and c. Both live at fixed addresses, so one graph serves every
    step, without two sides that swap. ``x`` [N, I, H, W] is written by the caller before a step, ``active`` int32 [N] says who steps:
    a stream with 0 keeps h and c bit for bit.

    weight [gates * C, I + C, K, K], x's channels first; bias; peepholes each [C] or [C, H, W]. dtype: of x, h and the
    convolution; c is float32. device: "cuda" captures the graph at the first step; "cpu" runs without one.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        peepholes: Sequence[Tensor] = (),
        *,
        streams: int,
        size: tuple[int, int],
        variant: GateVariant | None = None,
        dtype: Any = None,
        device: Any = "cuda",
    ) -> None:
        import torch

        self._torch, self._ops = torch, register_torch()
        self.variant = variant = variant or GateVariant()
        channels = weight.shape[0] // len(variant.gates)
        inputs = weight.shape[1] - channels
        names = [n for n in variant.inputs if n.startswith("p_")]
        if weight.ndim != 4 or inputs < 0 or weight.shape[2] % 2 == 0 or len(peepholes) != len(names):
            raise EdgeLstmError(
                "weights of a ConvLSTM step",
                found=f"{list(weight.shape)}, {len(peepholes)} peepholes",
                expected=f"[{len(variant.gates)} * C, I + C, K, K] with an odd K, peepholes {names or 'none'}",
            )
        dtype = dtype or (torch.float32 if str(device) == "cpu" else torch.float16)
        last = torch.channels_last
        self._weight = weight.detach().to(device=device, dtype=dtype).to(memory_format=last)
        self._bias = bias.detach().to(device=device, dtype=dtype)
        kept = [p.detach().to(device=device, dtype=torch.float32).contiguous() for p in peepholes]
        self._peepholes = dict(zip(names, kept, strict=True))
        # x and h side by side, as the convolution wants them; the two are parts of it.
        self._joined = torch.zeros(streams, inputs + channels, *size, dtype=dtype, device=device).to(
            memory_format=last
        )
        self.x, self._h_joined = self._joined[:, :inputs], self._joined[:, inputs:]
        self.h = torch.zeros(streams, channels, *size, dtype=dtype, device=device)
        # The gates write h as they read z: channels last where the kernel can, which for fp32 it can't.
        self._last = dtype != torch.float32 and channels % 8 == 0
        if self._last:
            self.h = self.h.to(memory_format=last)
        self.c = torch.zeros(streams, channels, *size, device=device)
        self.active = torch.ones(streams, dtype=torch.int32, device=device)
        self._graph: Any = None

    def step(self) -> Tensor:
        """Step the streams that are active; returns ``h``, which the next step replaces. Queued on the current stream."""
        if self.h.is_cuda:
            if self._graph is None:
                self._capture()
            self._graph.replay()
        else:
            self._run()
        return self.h

    def reset(self, stream: int | None = None) -> None:
        """Begin anew: one stream, or all."""
        for tensor in (self.h, self.c):
            (tensor if stream is None else tensor[stream]).zero_()

    def close(self) -> None:
        """Drop the graph, which holds memory. Calling it again does nothing."""
        self._graph = None

    def __enter__(self) -> ConvLstmStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        torch = self._torch
        with torch.no_grad():
            self._h_joined.copy_(self.h)
            z = torch.nn.functional.conv2d(
                self._joined, self._weight, self._bias, padding=self._weight.shape[-1] // 2
            )
            if not self._last:
                z = z.contiguous()
            self._ops.fused_gates_(
                z, self.c, self.h, **self._peepholes, variant=self.variant.op_type, active=self.active
            )

    def _capture(self) -> None:
        """Run once outside a graph, which compiles and chooses algorithms, and put the state back."""
        torch = self._torch
        kept = [(t, t.clone()) for t in (self.h, self.c)]
        stream = torch.cuda.Stream(self.h.device)
        stream.wait_stream(torch.cuda.current_stream(self.h.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run()
        torch.cuda.current_stream(self.h.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        for tensor, value in kept:
            tensor.copy_(value)
        self._graph = graph
