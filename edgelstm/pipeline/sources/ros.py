"""Messages of ROS 2 as arrays: images, compressed images, arrays with a layout.

Source: ros2/common_interfaces, sensor_msgs/msg/Image.msg and CompressedImage.msg, sensor_msgs/image_encodings.hpp, std_msgs/msg/MultiArrayLayout.msg.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.sources.images import picture_of
from edgelstm.pipeline.sources.source import Array, check_frame_size

#: (values, values of black and white, what was done).
Made = tuple[Array, tuple[float, float] | None, tuple[str, ...]]
#: How the array of a message is read; the text is for errors.
Read = Callable[[Any, str], Made]

#: Encodings: NumPy's dtype, channels, and the order in which they are red, green, blue; alpha is left out.
_ENCODINGS = {
    "mono8": ("u1", 1, None),
    "mono16": ("u2", 1, None),
    "rgb8": ("u1", 3, (0, 1, 2)),
    "bgr8": ("u1", 3, (2, 1, 0)),
    "rgba8": ("u1", 4, (0, 1, 2)),
    "bgra8": ("u1", 4, (2, 1, 0)),
    "rgb16": ("u2", 3, (0, 1, 2)),
    "bgr16": ("u2", 3, (2, 1, 0)),
    **{f"{t}C{n}": (d, n, None) for t, d in (("8U", "u1"), ("16U", "u2"), ("32F", "f4")) for n in (1, 3)},
}


def read_image(message: Any, where: str) -> Made:
    """sensor_msgs/Image: [H, W] or [H, W, 3]. Depth images (16UC1, 32FC1) as stored."""
    found = _ENCODINGS.get(message.encoding)
    if found is None:
        raise EdgeLstmError(
            f"{where}: encoding",
            found=message.encoding,
            expected=", ".join(_ENCODINGS),
            hint="Convert it when it is recorded, e.g. with image_proc",
        )
    code, channels, order = found
    dtype = np.dtype(code).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = message.height, message.width, message.step
    check_frame_size(where, (height, width, channels), dtype)
    row = width * channels * dtype.itemsize
    if step < row or len(message.data) != step * height:
        raise EdgeLstmError(
            f"{where}: bytes of an image",
            found=f"{len(message.data)}, {step} a row",
            expected=f"{count_of(height, 'row')} of at least {row}",
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, step)[:, :row]
    array: Array = np.ascontiguousarray(rows).view(dtype).astype(dtype.newbyteorder("="))
    array = array.reshape(height, width, channels)
    notes = [f"{message.encoding}: as stored"]
    if channels == 1:
        array = array[..., 0]
    elif order is not None:
        array = np.ascontiguousarray(array[..., list(order)])
        notes = [f"{message.encoding}: RGB{', alpha channel left out' if channels == 4 else ''}"]
    values = None if code == "f4" else (0.0, 255.0 if code == "u1" else 65535.0)
    return array, values, tuple(notes)


def read_compressed(message: Any, where: str) -> Made:
    """sensor_msgs/CompressedImage: JPEG or PNG, as a file of that kind is read."""
    if "compressedDepth" in message.format:
        raise EdgeLstmError(
            f"{where}: format",
            found=message.format,
            expected="JPEG or PNG",
            hint="Record the raw depth image",
        )
    return picture_of(bytes(message.data), where)


def read_array(message: Any, where: str) -> Made:
    """std_msgs/...MultiArray: in the shape of its layout, as one row where it has none."""
    raw = message.data
    array = np.frombuffer(raw, np.uint8) if isinstance(raw, (bytes, bytearray)) else np.asarray(raw)
    sizes = [int(d.size) for d in message.layout.dim]
    offset = int(message.layout.data_offset)
    array = array[offset:]
    if sizes and math.prod(sizes) != array.size:
        raise EdgeLstmError(
            f"{where}: layout", found=f"{count_of(array.size, 'number')}", expected=f"{sizes}"
        )
    check_frame_size(where, array.shape, array.dtype)
    if array.dtype.kind not in "biuf":
        raise EdgeLstmError(f"{where}: values", found=array.dtype, expected="numbers")
    return (array.reshape(sizes) if sizes else array), None, ()
