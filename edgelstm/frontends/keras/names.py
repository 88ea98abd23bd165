"""Names: of layers inside containers as Keras forms them, and of what a layer makes in the graph."""

from __future__ import annotations

import re


def snake_case(name: str) -> str:
    """``conv_lstm2d`` of ConvLSTM2D, ``p_re_lu`` of PReLU: how Keras names what lies in a container."""
    plain = re.sub(r"\W+", "", name)
    apart = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", plain)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", apart).lower()


def clean(name: str) -> str:
    """A layer's name as part of the names of values and states."""
    return re.sub(r"[^\w.\-]+", "_", name)[:80] or "layer"
