"""Networks that other people trained, from ../shared: exported, their documented truth reproduced, streamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import third_party  # noqa: E402

from edgelstm.frontends.torch.factory import load_weights  # noqa: E402
from edgelstm.frontends.torch.recognise import open_module  # noqa: E402
from edgelstm.frontends.torch.trace import trace  # noqa: E402
from edgelstm.frontends.torch.windows import TorchWindow  # noqa: E402
from edgelstm.graph.signature import Signature  # noqa: E402
from edgelstm.runtime.onnxruntime import OrtProgram  # noqa: E402

SATELLITE_LAYERS = [(11, 20, 5, 5), (20, 20, 5, 5), (20, 4, 5, 5)]


@pytest.fixture(scope="module")
def detector(shared_dir: Path) -> Any:
    path = shared_dir / "models/soccer/SweatyNet2_ConvLSTM_seq_2.pth"
    return load_weights(third_party.BallDetector(), path).eval()


@pytest.fixture(scope="module")
def picture(shared_dir: Path) -> Any:
    """The left part of the published result, 640 x 512, RGB in 0..1."""
    image = pytest.importorskip("PIL.Image")
    whole = image.open(shared_dir / "models/soccer/result.png").convert("RGB")
    left = whole.crop((0, 0, round(whole.width * 775 / 1568), whole.height)).resize(
        (640, 512), image.BILINEAR
    )
    return (np.asarray(left, np.float32) / 255).transpose(2, 0, 1)


def peak(maps: Any) -> tuple[float, float]:
    """Where the last map is largest, x and y as parts of its size."""
    height, width = maps.shape[-2:]
    y, x = divmod(int(np.argmax(maps[-1])), width)
    return x / width, y / height


@pytest.mark.thorough
def test_the_detector_finds_the_published_ball(detector: Any, picture: Any) -> None:
    """Its window of two frames: the layout is found on small frames, the graph made for the size it was trained on."""
    small, notes, windowed = open_module(detector, (3, 32, 32), window=2)
    assert windowed
    assert "BallDetector starts anew at every call" in notes[0]
    assert isinstance(small, TorchWindow)
    s = small.signature
    full = Signature(
        inputs=tuple(replace(t, shape=("N", 2, 3, 512, 640)) for t in s.inputs),
        outputs=tuple(replace(t, shape=("N", 2, 1, 128, 160)) for t in s.outputs),
        states=(),
        window=2,
    )
    graph = trace(TorchWindow(small.module, small.form, small.taken, full))
    assert graph.op_types().count("FusedGates_lstm") == 6
    program = OrtProgram(graph.to_bytes())
    (outputs,) = program.step([{"x": np.stack([picture] * 2)}], program.new_state(), [0])
    assert peak(outputs["y"]) == pytest.approx((0.412, 0.703), abs=0.001)


@pytest.mark.thorough
def test_the_detector_with_its_state_carried(detector: Any) -> None:
    """A step of it gives, two frames after the start, what its window of two gives; and goes on from there."""
    exported = edgelstm.export(detector, frame=(3, 32, 32), carry_state=True, limit=10)
    assert exported.step.op_types().count("FusedGates_lstm") == 3
    assert [s.frame_shape[0] for s in exported.step.signature.states] == [32, 32, 16, 16, 1, 1]
    frames = np.random.default_rng(0).random((2, 3, 32, 32)).astype(np.float32)
    program = OrtProgram(exported.step.to_bytes(), threads=1)
    state = program.new_state()
    outputs = [program.step([{"x": x}], state, [0])[0]["y"].copy() for x in frames]
    with torch.no_grad():
        whole = detector(torch.from_numpy(frames[None]))[0].numpy()
    np.testing.assert_allclose(outputs, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.thorough
def test_the_satellite_forecaster_streams(shared_dir: Path) -> None:
    """From its Lightning checkpoint, which names a class that nothing has to import, by the factory's name."""
    exported = edgelstm.export(
        f"{third_party.__file__}:Satellite",
        weights=shared_dir / "models/earthnet/model_epoch=019.ckpt",
        init={"layers": SATELLITE_LAYERS},
        frame=(11, 16, 16),
        limit=100,
    )
    found = exported.step.op_types()
    assert found.count("FusedGates_lstm") == 3
    assert "Sigmoid" not in found
    assert [s.frame_shape for s in exported.step.signature.states] == [(20, 16, 16)] * 4 + [(4, 16, 16)] * 2
