"""Torch modules for the benchmark's ``--module``."""

from __future__ import annotations

from torch import nn


def lstm() -> nn.LSTM:
    """Of the sizes of ``zoo.lstm``'s frames, not of its weights."""
    return nn.LSTM(3, 2, num_layers=1)
