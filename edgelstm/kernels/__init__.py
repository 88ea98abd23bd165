"""The project's CUDA kernels for whoever has a GPU and no TensorRT: torch tensors, CuPy arrays, anything with DLPack.

``fused_gates`` turns pre-activations into h and c; ``SmallCell`` runs a whole LSTM or GRU cell over one frame or a window in one
launch; ``ConvLstmKernel`` is a ConvLSTM step whose gates sit in the convolution's epilogue, ``ConvLstmStep`` one of cuDNN's convolution
and our gates in one CUDA graph. Code is compiled when it is first
needed (NVRTC, else nvcc) and kept in the user's cache. Nothing here imports torch until torch tensors come in.

May import: runtime, graph and below; torch only inside what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelstm.kernels.conv_lstm.kernel import ConvLstmKernel
    from edgelstm.kernels.gates.call import fused_gates
    from edgelstm.kernels.gates.torch_op import register_torch
    from edgelstm.kernels.small_cell.cell import SmallCell
    from edgelstm.kernels.step import ConvLstmStep

__all__ = ["ConvLstmKernel", "ConvLstmStep", "SmallCell", "fused_gates", "register_torch"]

_HOMES = {
    "fused_gates": "gates.call",
    "ConvLstmKernel": "conv_lstm.kernel",
    "ConvLstmStep": "step",
    "SmallCell": "small_cell.cell",
    "register_torch": "gates.torch_op",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
