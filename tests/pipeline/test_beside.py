"""MP4 in colour, and with the input beside the output; PNG in colour. Pixels decoded again and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.graph.step import make_step
from edgelstm.pipeline import Context, Frame, View, open_sink
from edgelstm.pipeline.sinks.panels import COLOURS, coloured

av = pytest.importorskip("av")


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_colours_run_through_their_stops() -> None:
    for name, stops in COLOURS.items():
        ends = coloured(np.array([[0, 255]], np.uint8), name)
        assert ends[0].tolist() == [list(stops[0]), list(stops[-1])]
    grey = np.arange(256, dtype=np.uint8)[None]
    assert coloured(grey, None) is grey
    assert (np.diff(coloured(grey, "blue").astype(int).sum(-1)) >= 0).all()
    with pytest.raises(EdgeLstmError, match="colours: found pink; expected blue or heat"):
        View(colours="pink")


def double(path: Path) -> Path:
    """y = 2 x, [1, 128, 128]."""
    from onnx import helper

    spec = ("N", 1, 128, 128)
    signature = Signature((TensorSpec("x", "float32", spec),), (TensorSpec("y", "float32", spec),), ())
    make_step([helper.make_node("Add", ["x", "x"], ["y"])], signature, []).save(path)
    return path


def test_the_input_stands_left_of_the_output_on_one_scale(tmp_path: Path) -> None:
    x = np.full((4, 128, 128), 0.25, np.float32)
    x[:, :64] = 0.5
    np.save(tmp_path / "x.npy", x)
    view = View(range=(0, 1), beside=True)
    edgelstm.run(
        double(tmp_path / "m.onnx"), str(tmp_path / "x.npy"), tmp_path / "v.mp4", view=view, threads=1
    )
    picture = decoded(tmp_path / "v.mp4")[2].astype(int)
    assert picture.shape == (128, 256, 3)
    for rows, columns, value in (
        (slice(8, 56), slice(8, 120), 0.5),
        (slice(72, 120), slice(8, 120), 0.25),
        (slice(8, 56), slice(136, 248), 1.0),
        (slice(72, 120), slice(136, 248), 0.5),
    ):
        assert np.abs(picture[rows, columns] - 255 * value).max() <= 4
    edgelstm.run(
        tmp_path / "m.onnx",
        str(tmp_path / "x.npy"),
        tmp_path / "c.mp4",
        view=View(range=(0, 1), colours="heat"),
        threads=1,
    )
    middle = decoded(tmp_path / "c.mp4")[2, 72:120, 8:120].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(middle, COLOURS["heat"][2], atol=8)  # 0.5, chroma at half resolution


def test_a_colour_source_is_shown_as_it_came(tmp_path: Path) -> None:
    spec = TensorSpec("x", "float32", ("N", 1, 128, 128))
    signature = Signature((spec,), (TensorSpec("y", "float32", ("N", 1, 128, 128)),), ())
    red = np.zeros((64, 96, 3), np.uint8)
    red[..., 0] = 200
    path = tmp_path / "v.mp4"
    with open_sink(path, signature, view=View(beside=True, range=(0, 1)), context=Context()) as sink:
        for k in range(3):
            frame = Frame(k, None, str(k), red, (0.0, 255.0))
            sink.write(frame, {"y": np.ones((1, 128, 128), np.float32)}, 0.0)
    picture = decoded(path)[1]
    assert picture.shape == (128, 192 + 128, 3)
    np.testing.assert_allclose(picture[16:112, 16:176].reshape(-1, 3).mean(0), [200, 0, 0], atol=8)
    assert picture[:, 210:].min() > 245


def test_what_has_no_picture_to_show_beside_is_refused(tmp_path: Path) -> None:
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 1, 64, 64)),), ()
    )
    with (
        pytest.raises(EdgeLstmError, match="the input beside the output: found no image"),
        open_sink(tmp_path / "v.mp4", signature, view=View(beside=True)) as sink,
    ):
        sink.write(Frame(0, None, "0", np.zeros(3)), {"y": np.zeros((1, 64, 64), np.float32)}, 0.0)
    assert not list(tmp_path.iterdir())
