"""Small architectures with random weights, for the tests of everything that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgelstm.frontends.described.architecture import (
    ARCHITECTURE_KEY,
    PREPROCESSING_KEY,
    Architecture,
    ConvHead,
    ConvLstm,
    EncoderForecaster,
    LinearHead,
    Lstm,
    to_json,
)
from edgelstm.frontends.described.graph import Described

hidden = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
sides = st.tuples(st.integers(1, 7), st.integers(1, 7))


@st.composite
def lstms(draw: st.DrawFn) -> Lstm:
    inputs, peephole = draw(st.integers(1, 5)), draw(st.booleans())
    residual = draw(st.booleans())
    if residual:
        head = LinearHead(inputs * draw(st.integers(1, 3)))
    else:
        head = draw(st.none() | st.builds(LinearHead, st.integers(1, 5)))
    return Lstm(inputs, draw(hidden), peephole, head, residual)


conv_lstms = st.builds(
    ConvLstm,
    channels=st.integers(1, 3),
    hidden=hidden,
    kernel=st.sampled_from([1, 3, 5]),
    size=sides,
    peephole=st.booleans(),
    head=st.none() | st.builds(ConvHead, st.integers(1, 3), st.sampled_from([1, 3])),
)


@st.composite
def encoder_forecasters(draw: st.DrawFn) -> EncoderForecaster:
    patch, (height, width) = draw(st.integers(1, 3)), draw(sides)
    return EncoderForecaster(
        channels=draw(st.integers(1, 3)),
        size=(patch * height, patch * width),
        patch=patch,
        stem=draw(st.integers(1, 4)),
        hidden=draw(hidden),
        kernel=draw(st.sampled_from([1, 3])),
        horizon=draw(st.integers(1, 4)),
        peephole=draw(st.booleans()),
        residual=draw(st.booleans()),
    )


architectures = lstms() | conv_lstms | encoder_forecasters()


def random_weights(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 0.5 / np.sqrt(np.prod(shape[1:]) or 1), shape).astype(np.float32)
        for name, shape in architecture.tensors().items()
    }


def random_described(architecture: Architecture, seed: int = 0) -> Described:
    return Described(architecture, random_weights(architecture, seed))


def write(
    path: Path,
    architecture: Architecture | dict[str, Any] | str | None,
    weights: dict[str, np.ndarray],
    preprocessing: Any = None,
) -> Path:
    """A .safetensors file; ``architecture`` may be any data or text, to try what must be refused."""
    header = {}
    if isinstance(architecture, Lstm | ConvLstm | EncoderForecaster):
        architecture = to_json(architecture)
    if architecture is not None:
        header[ARCHITECTURE_KEY] = architecture if isinstance(architecture, str) else json.dumps(architecture)
    if preprocessing is not None:
        header[PREPROCESSING_KEY] = json.dumps(preprocessing)
    save_file(weights, path, header or None)
    return path
