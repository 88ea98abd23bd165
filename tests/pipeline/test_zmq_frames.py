"""Arrays as ZeroMQ messages: there and back, and nothing but an EdgeLstmError for what is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.zmq_frames import DTYPES, MAX_HEADER, Message, decode, encode, topic

arrays = hnp.arrays(
    st.sampled_from(DTYPES).map(np.dtype) | st.just(np.dtype(">f4")),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
words = st.text(max_size=8)


@given(
    words,
    st.integers(0, 2**40),
    st.dictionaries(words, arrays, max_size=3),
    st.none() | st.floats(0, 1e9),
    words,
)
@settings(deadline=None, max_examples=60)
def test_there_and_back(
    stream: str, index: int, values: dict[str, Any], time: float | None, name: str
) -> None:
    parts = [bytes(part) for part in encode(Message(stream, index, values, time, name))]
    back = decode(parts)
    assert (back.stream, back.index, back.time, back.name) == (stream, index, time, name)
    assert list(back.arrays) == list(values)
    for key, array in values.items():
        np.testing.assert_array_equal(back.arrays[key], array)
        assert back.arrays[key].dtype.name == array.dtype.name
    assert parts[0].startswith(topic(stream))
    assert not parts[0].startswith(topic(stream + "x"))


def message(**changes: Any) -> list[bytes]:
    header = {"version": 1, "stream": "s", "index": 0, "arrays": {"y": {"dtype": "float32", "shape": [2]}}}
    return [json.dumps(header | changes).encode(), bytes(8)]


def y(dtype: Any, shape: Any) -> Any:
    return {"y": {"dtype": dtype, "shape": shape}}


def test_a_header_of_another_hand_is_read() -> None:
    np.testing.assert_array_equal(decode(message(more=1)).arrays["y"], [0, 0])


BAD: list[list[bytes]] = [
    [], [b""], [b"{}"], [b"[1]", b""], [b"[" * 60000], [b" " * (MAX_HEADER + 1)], [b"\xff"], message()[:1], [*message(), b""],
    message(version=2), message(index=-1), message(index=1.5), message(index=True), message(stream=3), message(time=float("inf")),
    message(time="1"), message(arrays=y("float32", [3])), message(arrays=y("float32", [-1, -2])), message(arrays=y("float32", [2**62, 4])),
    message(arrays=y("object", [1])), message(arrays=y("float32", 2)), message(arrays=y("float32", [2.0])), message(arrays=y("O8", [1])),
    message(arrays=y(["float32"], [2])), message(arrays=[]), message(arrays={"y": 3}), message(arrays=y("float32", [1] * 40)),
]  # fmt: skip


@pytest.mark.parametrize("parts", BAD, ids=range(len(BAD)))
def test_what_is_none_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(EdgeLstmError, match="a ZeroMQ message"):
        decode(parts)


@given(st.lists(st.binary(max_size=40), max_size=3))
@settings(deadline=None, max_examples=50)
def test_noise_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(EdgeLstmError):
        decode(parts)
