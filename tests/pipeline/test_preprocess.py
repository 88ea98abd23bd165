"""Preprocessing: the arithmetic against NumPy and PyTorch, the messages, the command line's text."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.dtypes import to_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Frame, Inputs, Preprocess, format_ops, inverse, parse_ops, parse_preprocess


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec("x", dtype, ("N", *shape))


def apply(ops: str, frame: np.ndarray, *shape: int, dtype: str = "float32") -> np.ndarray:
    return Preprocess(parse_ops(ops), spec(*shape, dtype=dtype))(frame)


def signature(*names: str, window: int | None = None) -> Signature:
    shape = ("N", 2) if window is None else ("N", window, 2)
    tensors = tuple(TensorSpec(n, "float32", shape) for n in names)
    return Signature(tensors, (TensorSpec("y", "float32", shape),), (), window=window)


RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)


def test_radar_chain_gives_log_rain_rate() -> None:
    raw = np.array([[0, 100], [65535, 25]], np.uint16)
    out = apply("nodata=65535;scale=0.12;log1p", raw, 1, 2, 2)
    np.testing.assert_allclose(out, np.log1p([[[0, 12], [0, 3]]]), rtol=1e-6)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous


def test_nodata_nan() -> None:
    raw = np.array([[np.nan, 1], [2, 3]], np.float64)
    np.testing.assert_array_equal(apply("nodata=nan,-1", raw, 2, 2), [[-1, 1], [2, 3]])


def test_average_cuts_the_remainder_at_bottom_and_right() -> None:
    raw = np.arange(35, dtype=np.uint16).reshape(5, 7)
    expected = raw[:4, :6].reshape(2, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(apply("average=2", raw, 2, 3), expected)


def test_average_of_colour_keeps_channels() -> None:
    expected = RGB.reshape(5, 2, 7, 2, 3).mean((1, 3))
    np.testing.assert_allclose(apply("average=2", RGB, 5, 7, 3), expected, rtol=1e-6)


def test_crop_takes_the_window() -> None:
    np.testing.assert_array_equal(apply("crop=2,3,4,5", RGB, 4, 5, 3), RGB[2:6, 3:8])


def test_grey_is_bt601() -> None:
    np.testing.assert_allclose(apply("grey", RGB, 10, 14), RGB @ [0.299, 0.587, 0.114], rtol=1e-6)


def test_channels_first_then_normalize_per_channel() -> None:
    out = apply("channels_first;normalize=1/2/3,2/4/8", RGB, 3, 10, 14)
    expected = (RGB.transpose(2, 0, 1) - np.array([1, 2, 3])[:, None, None]) / np.array([2, 4, 8])[
        :, None, None
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_normalize_sensors_one_value_each() -> None:
    np.testing.assert_allclose(apply("normalize=1/2,1/2", np.array([3, 8.0]), 2), [2, 3])


def test_clip() -> None:
    np.testing.assert_array_equal(apply("clip=0,1", np.array([-1, 0.5, 2]), 3), np.float32([0, 0.5, 1]))


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.booleans(), st.integers(0, 99))
def test_resize_is_pytorchs_bilinear(sizes: tuple[int, ...], colour: bool, seed: int) -> None:
    torch = pytest.importorskip("torch")
    height, width, new_height, new_width = sizes
    channels = 3 if colour else 1
    raw = np.random.default_rng(seed).normal(size=(height, width, channels)).astype(np.float32)
    out = apply(f"resize={new_height},{new_width};channels_first", raw, channels, new_height, new_width)
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(raw).permute(2, 0, 1)[None],
        size=(new_height, new_width),
        mode="bilinear",
        align_corners=False,
    )[0]
    np.testing.assert_allclose(out, reference.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (4, 6, 1)])
def test_missing_channel_axis_is_added(shape: tuple[int, ...]) -> None:
    raw = RNG.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(apply("", raw, *shape), raw.reshape(shape))


def test_channels_first_arrays_are_resized_along_height_and_width() -> None:
    raw = RNG.normal(size=(16, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(
        apply("average=2", raw, 16, 4, 4), raw.reshape(16, 4, 2, 4, 2).mean((2, 4)), rtol=1e-4
    )


def test_nothing_to_do_is_exact_in_every_dtype() -> None:
    tokens = np.array([2**53 + 1], np.int64)
    assert apply("", tokens, 1, dtype="int64") == tokens
    doubles = RNG.normal(size=5)
    np.testing.assert_array_equal(apply("", doubles, 5, dtype="float64"), doubles)


def test_integer_inputs_round_and_saturate() -> None:
    raw = np.array([-3, 0.4, 0.6, 300], np.float32)
    np.testing.assert_array_equal(apply("", raw, 4, dtype="uint8"), [0, 0, 1, 255])
    big = np.array([-1e30, 1e30, 7, 8], np.float32)
    np.testing.assert_array_equal(apply("", big, 4, dtype="int64")[[0, 2, 3]], [-(2**63), 7, 8])
    assert apply("", big, 4, dtype="int64")[1] > 2**62
    wide = np.array([-5, 300, 1, 2], np.int64)
    np.testing.assert_array_equal(apply("", wide, 4, dtype="uint8"), [0, 255, 1, 2])


def test_nan_for_an_integer_input_is_refused() -> None:
    with pytest.raises(EdgeLstmError, match="frame for input 'x': found NaN or infinity; expected uint8"):
        apply("", np.array([np.nan]), 1, dtype="uint8")


def test_bfloat16_bits_round_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate([RNG.normal(size=100) * 1e3, [np.nan, np.inf, -0.0]]).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(apply("", values, 103, dtype="bfloat16")[:100], expected[:100])
    np.testing.assert_array_equal(apply("", values, 103, dtype="bfloat16")[100:], [0x7FC0, 0x7F80, 0x8000])


def test_float8_bits_are_of_the_values_not_of_whole_numbers() -> None:
    found = apply("scale=0.5", np.array([1, 2, 0, 255], np.uint8), 4, dtype="float8e4m3fn")
    np.testing.assert_array_equal(to_float32(found, "float8e4m3fn"), [0.5, 1, 0, 128])
    found = apply("", np.array([1, 2, 0, 255], np.uint8), 4, dtype="float8e4m3fn")
    np.testing.assert_array_equal(to_float32(found, "float8e4m3fn"), [1, 2, 0, 256])


def test_one_object_serves_frames_of_several_sizes() -> None:
    preprocess = Preprocess(parse_ops("resize=4,4"), spec(4, 4))
    for size in (8, 5, 8):
        assert preprocess(np.ones((size, size), np.float32)).sum() == 16


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        (
            [{"op": "blur"}],
            "preprocessing of input 'x', operation 1: unknown operation: found 'blur'; expected one of nodata",
        ),
        ([{"factor": 2}], "operation 1: unknown operation: found {'factor': 2}"),
        (["grey"], "operation 1: unknown operation: found 'grey'"),
        (
            [{"op": "grey"}, {"op": "crop", "top": 0, "left": 0}],
            "operation 2 (crop): missing key height, width: expected keys top, left, height, width",
        ),
        (
            [{"op": "scale", "factor": 1, "of": 2}],
            "operation 1 (scale): unknown key: found of; expected keys factor, [offset]",
        ),
        ([{"op": "scale", "factor": "2"}], "operation 1 (scale): factor: found '2'; expected a number"),
        ([{"op": "scale", "factor": True}], "factor: found True; expected a number"),
        ([{"op": "scale", "factor": float("nan")}], "factor: found nan; expected a number"),
        ([{"op": "average", "factor": 2.0}], "factor: found 2.0; expected an integer"),
        ([{"op": "normalize", "mean": [], "std": [1]}], "mean: found []; expected numbers"),
    ],
)
def test_bad_operations(ops: list, message: str) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        Preprocess(ops, spec(4, 4))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("crop=8,0,4,4", "operation 1 (crop): crop does not lie inside the frame: found rows 8 to 12, columns 0 to 4; expected within 10 rows and 14 columns"),
        ("average=11", "operation 1 (average): factor: found 11; expected 1 to 10"),
        ("resize=0,4", "operation 1 (resize): size: found [0, 4]; expected at least 1 x 1"),
        ("resize=1000000,1000000", "operation 1 (resize): size: found [1000000, 1000000]; expected at most"),
        ("channels_first;grey;channels_first", "operation 3 (channels_first): moves channels from last to first: found [10, 14]; expected [H, W, C]"),
        ("grey;channels_first", "operation 2 (channels_first): moves channels from last to first: found [10, 14]; expected [H, W, C]"),
        ("clip=1,1", "operation 1 (clip): min and max: found 1, 1; expected min below max"),
        ("normalize=1/2,1", "operation 1 (normalize): number of values in mean: found 2; expected one for each of the 3 channels, or one for all"),
        ("normalize=1,0", "operation 1 (normalize): std: found [0.0]; expected values above 0"),
    ],
)  # fmt: skip
def test_operations_that_do_not_fit_the_frame(ops: str, message: str) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        apply(ops, RGB, 4, 4)
    assert message in str(caught.value)


def test_wrong_shape_shows_the_way_it_went_and_how_to_get_there() -> None:
    with pytest.raises(EdgeLstmError) as caught:
        apply("average=2;grey", RGB, 1, 64, 64)
    assert str(caught.value) == (
        "frames for input 'x': found [5, 7] (source [10, 14, 3] -> average [5, 7, 3] -> grey [5, 7]); "
        "expected [1, 64, 64] as the model takes it. Say how to get there, e.g. --preprocess 'resize=64,64;grey'"
    )


def test_the_suggestion_keeps_the_units_that_are_declared() -> None:
    """It takes the place of what is declared; 0 to 255 for a model that wants 0 to 1 would be answered without a word."""
    for declared in ("scale=0.00392156863", "average=2;scale=0.00392156863", "nodata=255;scale=0.01;log1p"):
        with pytest.raises(EdgeLstmError) as caught:
            apply(declared, RGB, 1, 6, 4)
        text = str(caught.value).split("--preprocess '")[1].rstrip("'")
        units = [op["op"] for op in parse_ops(declared) if op["op"] != "average"]
        assert [op["op"] for op in parse_ops(text) if op["op"] not in ("resize", "grey")] == units
        assert apply(text, RGB, 1, 6, 4).max() < 2.6


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 64), (3, 10, 14), (64, 64)])
def test_the_suggestion_in_that_message_works(shape: tuple[int, ...]) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        apply("", RGB, *shape)
    suggestion = caught.value.hint.split("'")[1]
    assert apply(suggestion, RGB, *shape).shape == shape


def test_images_only() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"operation 1 \(resize\): works on images: found \[5\]; expected \[H, W\]"
    ):
        apply("resize=2,2", np.zeros(5), 2, 2)


def test_inverse_gives_physical_units_back() -> None:
    ops = parse_ops("nodata=65535;scale=0.12;average=2;log1p=0.25;normalize=0.1,0.5;clip=-100,100")
    raw = RNG.integers(0, 1000, (6, 6)).astype(np.float32)
    model = Preprocess([op for op in ops if op["op"] != "average"], spec(6, 6))(raw)
    np.testing.assert_allclose(inverse(ops)(model), raw, rtol=1e-3, atol=1e-2)
    with pytest.raises(EdgeLstmError, match="a value for each channel can't be undone"):
        inverse(parse_ops("normalize=1/2,1"))
    with pytest.raises(EdgeLstmError, match="scale by 0"):
        inverse(parse_ops("scale=0"))


def test_parse_ops() -> None:
    assert parse_ops("crop=0,0,256,256; scale=0.0039 ;grey;nodata=nan;normalize=0.5/1,2") == [
        {"op": "crop", "top": 0, "left": 0, "height": 256, "width": 256},
        {"op": "scale", "factor": 0.0039, "offset": 0.0},
        {"op": "grey"},
        {"op": "nodata", "value": "nan", "replace": 0.0},
        {"op": "normalize", "mean": [0.5, 1.0], "std": [2.0]},
    ]
    assert parse_ops("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blur=2", "preprocessing 'blur=2': unknown operation: found blur; expected one of"),
        (
            "crop=1,2",
            "preprocessing 'crop=1,2': number of values: found 2; expected keys top, left, height, width",
        ),
        ("scale=1,2,3", "number of values: found 3; expected keys factor, [offset]"),
        ("grey=1", "number of values: found 1; expected no keys"),
        ("scale=two", "preprocessing 'scale=two': factor: found 'two'; expected a number"),
        ("scale=nan", "factor: found nan; expected a number"),
        ("average=1.5", "factor: found '1.5'; expected an integer"),
        ("normalize=1/,2", "mean: found '1/'; expected numbers"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        parse_ops(text)
    assert message in str(caught.value)


numbers = st.floats(-1e30, 1e30, allow_nan=False)
operations = st.one_of(
    st.builds(lambda f, o: {"op": "scale", "factor": f, "offset": o}, numbers, numbers),
    st.builds(lambda f: {"op": "average", "factor": f}, st.integers(1, 99)),
    st.builds(lambda v: {"op": "nodata", "value": v, "replace": 0.0}, numbers | st.just("nan")),
    st.builds(
        lambda m: {"op": "normalize", "mean": m, "std": [1.0]}, st.lists(numbers, min_size=1, max_size=4)
    ),
    st.just({"op": "grey"}),
)


@given(st.lists(operations, max_size=5))
def test_text_and_json_are_the_same(ops: list[dict]) -> None:
    assert parse_ops(format_ops(ops)) == ops


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(EdgeLstmError):
        parse_ops(text)


def test_parse_preprocess_names_inputs() -> None:
    assert parse_preprocess(["grey"], signature("x")) == {"x": [{"op": "grey"}]}
    assert parse_preprocess(["a:0:grey", "b:"], signature("a:0", "b")) == {"a:0": [{"op": "grey"}], "b": []}
    with pytest.raises(
        EdgeLstmError, match="'grey' does not say for which input: expected 'NAME:grey' with one of a, b"
    ):
        parse_preprocess(["grey"], signature("a", "b"))
    with pytest.raises(EdgeLstmError, match="no input 'c'"):
        parse_preprocess(["c:grey"], signature("a", "b"))


def frames(count: int, *names: str) -> list[Frame]:
    data = [np.full(2, i, np.float64) for i in range(count)]
    return [Frame(i, None, str(i), dict.fromkeys(names, d) if names else d) for i, d in enumerate(data)]


def test_inputs_use_the_declared_operations_unless_overridden() -> None:
    plain = signature("x")
    declared = Signature(
        plain.inputs, plain.outputs, (), preprocessing={"x": ({"op": "scale", "factor": 2},)}
    )
    assert Inputs(declared)(frames(2)[1])["x"].tolist() == [2, 2]
    assert Inputs(declared, {"x": parse_ops("scale=5")})(frames(2)[1])["x"].tolist() == [5, 5]
    with pytest.raises(EdgeLstmError, match="no input 'z'"):
        Inputs(plain, {"z": []})


def test_inputs_pairs_arrays_by_name() -> None:
    assert set(Inputs(signature("a", "b"))(frames(1, "b", "a", "more")[0])) == {"a", "b"}
    with pytest.raises(
        EdgeLstmError, match="the source lacks input b: found arrays a, c; expected one for each of a, b"
    ):
        Inputs(signature("a", "b"))(frames(1, "a", "c")[0])
    with pytest.raises(EdgeLstmError, match="the model has 2 inputs and the source gives one array a frame"):
        Inputs(signature("a", "b"))(frames(1)[0])


def test_a_window_takes_its_frames_together(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        steps = list(Inputs(signature("x", window=3)).steps(frames(7)))
    assert [frame.index for frame, _ in steps] == [2, 5]
    assert steps[1][1]["x"].tolist() == [[3, 3], [4, 4], [5, 5]]
    assert "left out at the end: 1 frame, too few for a window of 3" in caplog.text
    assert [f.index for f, _ in Inputs(signature("x")).steps(frames(2))] == [0, 1]
