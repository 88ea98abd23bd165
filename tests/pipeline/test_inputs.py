"""Inputs and Outputs: raw frames in, windows that slide and hop, units out, gaps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.pipeline import Frame, Inputs, Outputs, parse_ops
from edgelstm.pipeline.operations import OPERATIONS, table
from edgelstm.pipeline.postprocess import POST_OPERATIONS

ROOT = Path(__file__).resolve().parents[2]


def signature(
    frame: tuple[int, ...],
    *outputs: tuple[int, ...],
    ops: str = "",
    window: int | None = None,
    states: int = 0,
) -> Signature:
    return Signature(
        (TensorSpec("x", "float32", ("N", *frame)),),
        tuple(TensorSpec(f"y{k}", "float32", ("N", *s)) for k, s in enumerate(outputs or ((1,),))),
        tuple(StateSpec(f"h{k}", f"h{k}", f"h{k}n", "float32", ("N", 2)) for k in range(states)),
        window,
        {"x": tuple(parse_ops(ops))} if ops else {},
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 9), st.integers(0, 30))
def test_windows_are_those_of_a_sliding_window_view(size: int, hop: int, count: int) -> None:
    rows = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    inputs = Inputs(signature((size, 3)), hop=hop)
    found = [w["x"] for w in map(inputs.push, rows) if w is not None]
    if count < size:
        assert not found
    else:
        wanted = np.lib.stride_tricks.sliding_window_view(rows, size, 0)[::hop].transpose(0, 2, 1)
        np.testing.assert_array_equal(found, wanted)


def test_every_stream_has_a_window_of_its_own() -> None:
    inputs = Inputs(signature((2, 1)), hop=1)
    assert inputs.push(np.array([1.0]), "a") is None
    assert inputs.push(np.array([5.0]), "b") is None
    window = inputs.push(np.array([2.0]), "a")
    assert window is not None
    assert window["x"].ravel().tolist() == [1, 2]


def test_frames_short_of_a_last_window_are_told(caplog: pytest.LogCaptureFixture) -> None:
    frames = [Frame(k, None, str(k), np.zeros(3, np.float32)) for k in range(8)]
    assert len(list(Inputs(signature((3, 3)), hop=2).steps(frames))) == 3
    assert "left out at the end: 1 frame," in caplog.text


def test_a_hop_that_does_not_fit_is_refused() -> None:
    for wrong, message in (
        (signature((3,)), "Leave the hop out"),
        (signature((4, 3), (4, 1), window=4, states=1), "would go into the state twice"),
    ):
        with pytest.raises(EdgeLstmError, match=message):
            Inputs(wrong, hop=1)
    with pytest.raises(EdgeLstmError, match="hop: found 0"):
        Inputs(signature((4, 3)), hop=0)
    assert Inputs(signature((4, 3), (4, 1), window=4), hop=1).window == 4  # nothing carried: it may slide


def test_gaps_are_treated_as_asked() -> None:
    def frames() -> list[Frame]:
        data = np.zeros(1, np.float32)
        return [Frame(k, None, str(k), data + k, gap="1 frame missing" if k == 3 else None) for k in range(6)]

    def windows(policy: str) -> list[tuple[list[float], str | None]]:
        inputs = Inputs(signature((2, 1)), hop=1, on_gap=policy)  # type: ignore[arg-type]
        return [(w["x"].ravel().tolist(), f.gap) for f, w in inputs.steps(frames())]

    gap = "1 frame missing"
    assert windows("hold") == [([0, 1], None), ([1, 2], None), ([2, 3], gap), ([3, 4], None), ([4, 5], None)]
    assert windows("reset") == [([0, 1], None), ([1, 2], None), ([3, 4], gap), ([4, 5], None)]
    with pytest.raises(EdgeLstmError, match=r"frame 3 \(3\): found 1 frame missing"):
        windows("error")
    with pytest.raises(EdgeLstmError, match="on_gap: found never"):
        windows("never")


def test_a_camera_picture_goes_in_raw() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    inputs = edgelstm.Inputs(signature((1, 4, 5), ops="resize=4,5;grey;scale=0.00392156863"))
    torch = pytest.importorskip("torch")
    raw = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(raw, (4, 5), mode="bilinear", align_corners=False)[0].numpy()
    wanted = np.tensordot([0.299, 0.587, 0.114], small, 1) / 255
    np.testing.assert_allclose(inputs(picture)["x"][0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("ops", "units", "back"),
    [
        ("nodata=65535;scale=0.12;log1p=0.25", "physical", lambda y: np.expm1(y / 0.25)),
        ("nodata=65535;scale=0.12;log1p=0.25", "source", lambda y: np.expm1(y / 0.25) / 0.12),
        ("scale=0.00392156863", "physical", lambda y: y),
        ("scale=0.00392156863", "source", lambda y: y * 255),
        ("scale=0.5;normalize=2,4", "physical", lambda y: y * 4 + 2),
    ],
)
def test_outputs_go_the_way_back(ops: str, units: str, back: object) -> None:
    made = {
        "y0": np.random.default_rng(1).random((3, 4, 5), np.float32),
        "y1": np.ones(2, np.float32),
    }
    outputs = Outputs(signature((4, 5), (3, 4, 5), (2,), ops=ops), units=units)  # type: ignore[arg-type]
    assert outputs.converted == ("y0",)
    found = outputs(made)
    np.testing.assert_allclose(found["y0"], back(made["y0"].astype(np.float64)), rtol=2e-6)  # type: ignore[operator]
    np.testing.assert_array_equal(found["y1"], made["y1"])


def test_units_where_there_are_none_are_refused() -> None:
    with pytest.raises(EdgeLstmError, match=r"units=physical: found output y0 \[2\]"):
        Outputs(signature((4, 5), (2,)), units="physical")
    with pytest.raises(EdgeLstmError, match="a value for each channel can't be undone"):
        Outputs(signature((3,), (3,), ops="normalize=1/2/3,1/1/1"), units="physical")


def test_the_page_lists_every_operation_with_its_parameters() -> None:
    page = (ROOT / "docs" / "preprocessing.md").read_text("utf-8")
    shown = re.search(r"operations\.table -->\n(.*?)\n<!-- end", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == table(), (
        "docs/preprocessing.md: put in what edgelstm.pipeline.operations.table() gives"
    )
    assert all(operation.does for operation in OPERATIONS.values())


def test_the_help_names_every_operation() -> None:
    import typer

    from edgelstm.cli import app

    group = typer.main.get_command(app)
    option = next(p for p in group.commands["run"].params if "--preprocess" in p.opts)  # type: ignore[attr-defined]
    for name in (*OPERATIONS, "docs/preprocessing.md"):
        assert name in option.help
    option = next(p for p in group.commands["run"].params if "--postprocess" in p.opts)  # type: ignore[attr-defined]
    for name in POST_OPERATIONS:
        assert name in option.help
