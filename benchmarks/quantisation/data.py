"""Frames for each case: one long stream to calibrate on, another to test on.

The two never share a frame: they differ in seed and, where the data is real, in the part it comes from. Equal
arguments give equal frames.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import count, islice
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import numpy.typing as npt
from cases import EXAMPLES, RADAR, step_graph

from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array, Frame

Part = Literal["calibration", "test"]
#: Frames after which a stream of moving digits shows two other digits, its state carried on.
SCENE = 100
#: DTLN's blocks at 16 kHz: samples of a block, and between the beginnings of two.
BLOCK, SHIFT = 512, 128
RATE = 16_000


def frames(case: str, n: int, seed: int, *, part: Part = "test") -> Iterator[Frame]:
    """``n`` frames of one stream, input name -> array without the stream axis, float32."""
    random = np.random.default_rng((seed, ("calibration", "test").index(part)))
    return islice(_SOURCES[case](random, part), n)


def smooth_maps(random: np.random.Generator, part: Part) -> Iterator[Frame]:
    """The reference cell's [16, 64, 64]: in each channel six plane waves of at most four cycles a side, every one with
    a drift of its own (at most a tenth of a radian a frame) and a strength that swells and fades over about 100
    frames. Values are about standard normal."""
    channels, waves, side = 16, 6, 64
    shape = (channels, waves)
    cycles = random.integers(-4, 5, (2, *shape))
    place = 2j * np.pi * np.arange(side) / side
    rows, columns = (np.exp(c[..., None] * place) for c in cycles)
    phase, drift = random.uniform(0, 2 * np.pi, shape), random.uniform(-0.1, 0.1, shape)
    swell, beat = random.uniform(0, 2 * np.pi, shape), random.uniform(0.03, 0.09, shape)
    for t in count():
        strength = (1 + 0.5 * np.sin(swell + beat * t)) * np.exp(1j * (phase + drift * t))
        maps = ((strength[..., None] * rows).swapaxes(1, 2) @ columns).real
        yield {"x": (maps * np.sqrt(2 / waves)).astype(np.float32)}


def digits(random: np.random.Generator, part: Part) -> Iterator[Frame]:
    """Moving digits [1, 64, 64]; calibration draws training digits, the test those that no training saw."""
    data = _example_data("moving_digits")
    images = data.digit_images("train" if part == "calibration" else "test")
    while True:
        streams = data.Streams(images, 1, int(random.integers(2**31)))
        yield from ({"x": frame} for frame in streams.frames(0, SCENE)[:, 0])


def radar(random: np.random.Generator, part: Part) -> Iterator[Frame]:
    """Rain [1, 128, 128]. Calibration: squares of the composites before 05:30, anywhere with data, turned and mirrored
    as in training, another one each time the night ends. Test: the live square from 05:30 on (26 frames), forwards
    and backwards for ever, so that no frame jumps."""
    data = _example_data("nowcast_radar")
    rate, known = _radar(part)
    if part == "test":
        there = data.to_network(rate)[:, None]
        bounce = np.concatenate([there, there[-2:0:-1]])
        at = int(random.integers(len(bounce)))
        yield from ({"x": bounce[(at + t) % len(bounce)]} for t in count())
    while True:
        row, column = (int(random.integers(0, side - data.SIDE + 1)) for side in rate.shape[1:])
        square = np.s_[:, row : row + data.SIDE, column : column + data.SIDE]
        if known[square][0].mean() <= 0.5:
            continue
        turned = np.rot90(data.to_network(rate[square]), int(random.integers(4)), axes=(1, 2))
        if random.random() < 0.5:
            turned = turned[:, ::-1]
        yield from ({"x": frame[None]} for frame in turned)


def plant(random: np.random.Generator, part: Part) -> Iterator[Frame]:
    """A plant's six sensors."""
    plants = _example_data("sensor_lstm").Plants(1, int(random.integers(2**31)))
    while True:
        yield from ({"x": sample} for sample in plants.samples(100)[:, 0])


def dtln_magnitudes(random: np.random.Generator, part: Part) -> Iterator[Frame]:
    """model_1's [1, 257]: magnitudes of the spectrum of each block."""
    for block in _blocks(random):
        yield {"input_2": np.abs(np.fft.rfft(block))[None].astype(np.float32)}


def dtln_estimates(random: np.random.Generator, part: Part) -> Iterator[Frame]:
    """model_2's [1, 512]: each block as model_1, in float, leaves it: its spectrum times model_1's mask."""
    from edgelstm.runtime.onnxruntime import OrtProgram

    with tempfile.TemporaryDirectory() as folder:
        model = step_graph("dtln_1", Path(folder)).read_bytes()
    program = OrtProgram(model, threads=1, spin=False)
    signature: Signature = program.signature
    state = program.new_state()
    for block in _blocks(random):
        spectrum = np.fft.rfft(block)
        frame = {signature.inputs[0].name: np.abs(spectrum)[None].astype(np.float32)}
        mask = program.step([frame], state, [0])[0][signature.outputs[0].name]
        yield {"input_4": np.fft.irfft(spectrum * mask[0])[None].astype(np.float32)}


def _blocks(random: np.random.Generator) -> Iterator[Array]:
    """Blocks of BLOCK samples, each SHIFT further on in :func:`_speech`."""
    samples = np.zeros(BLOCK)
    for piece in _speech(random):
        samples = np.concatenate([samples, piece])
        while len(samples) >= BLOCK:
            yield samples[:BLOCK]
            samples = samples[SHIFT:]


def _speech(random: np.random.Generator) -> Iterator[npt.NDArray[np.float64]]:
    """Endless sound that has what a denoiser looks for, syllable by syllable: up to 40 harmonics of a gliding pitch
    (90 to 220 Hz) under three formants, an envelope that rises and falls, some syllables silent, others hissing; over
    all a steady low-passed noise about 15 dB below. Root mean square near 0.05, as of recorded speech."""
    phase = 0.0
    pitch = float(random.uniform(90, 220))
    while True:
        length = int(random.uniform(0.12, 0.35) * RATE)
        time = np.arange(length) / RATE
        target = float(np.clip(pitch * random.uniform(0.8, 1.25), 90, 220))
        angle = phase + 2 * np.pi * np.cumsum(np.linspace(pitch, target, length)) / RATE
        phase, pitch = float(angle[-1]), target
        orders = np.arange(1, 41)[:, None]
        formants = random.uniform((300, 900, 2200), (800, 2000, 3200))
        gain = sum(np.exp(-(((orders * pitch - f) / 150) ** 2)) / (1 + i) for i, f in enumerate(formants))
        gain = (gain + 0.02) * (orders * pitch < RATE / 2)
        voiced = (gain * np.sin(orders * angle)).sum(axis=0)
        hiss = np.diff(random.normal(size=length + 1))
        kind = random.choice(3, p=(0.7, 0.15, 0.15))  # voiced, hissing, silent
        envelope = np.abs(np.sin(np.pi * time / time[-1])) ** 0.5
        sound = (0.12 * voiced, 0.04 * hiss, 0 * hiss)[kind] * envelope
        noise = np.convolve(random.normal(size=length + 7), np.ones(8) / 8, mode="valid")
        yield sound * random.uniform(0.5, 1.5) + 0.02 * noise


@cache
def _radar(part: Part) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Rain in mm/h and where it is known; the part's composites."""
    data = _example_data("nowcast_radar")
    counts, times = data.read(RADAR)
    chosen = counts[[(time >= data.SPLIT) == (part == "test") for time in times]]
    rate, known = data.rain(data.live_square(chosen) if part == "test" else chosen)
    return rate, known


@cache
def _example_data(name: str) -> ModuleType:
    """An example's data.py; all of them are called ``data``, as this module is."""
    spec = importlib.util.spec_from_file_location(f"{name}_data", EXAMPLES / name / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_SOURCES = {
    "conv_lstm": smooth_maps,
    "moving_digits": digits,
    "nowcast_radar": radar,
    "sensor_lstm": plant,
    "dtln_1": dtln_magnitudes,
    "dtln_2": dtln_estimates,
}
