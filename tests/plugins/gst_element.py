"""The GStreamer element, built once for all tests (and kept while its sources stay the same), and runs of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import c_library
from building import alone
from edgelstm.engine.gst_build import GstPlugin, build_gst, find_gstreamer, sources_hash
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources import gstreamer

Array = np.ndarray[Any, Any]
GREY = "video/x-raw,format=GRAY8,width={1},height={0},framerate=10/1"
RGB = "video/x-raw,format=RGB,width={1},height={0},framerate=10/1"
DEEP = "video/x-raw,format=GRAY16_LE,width={1},height={0},framerate=10/1"


@cache
def built() -> GstPlugin:
    """Skips the test where GStreamer, its headers or its bindings for Python are not here."""
    try:
        find_gstreamer()
        gstreamer._python("a test")
    except EdgeLstmError as error:
        pytest.skip(f"no GStreamer to build with on this machine: {error}")
    if shutil.which("gst-launch-1.0") is None:
        pytest.skip("no GStreamer to build with on this machine: apt install gstreamer1.0-tools")
    library = c_library.built()
    source = c_library.ROOT / "plugins"
    prefix = c_library.ROOT / "build" / "gst-tests" / sources_hash(source)[:16]
    plugin = GstPlugin(prefix, sources_hash(source))
    with alone(prefix):
        if not plugin.path.is_file():
            own = prefix.with_name(f"{prefix.name}-{os.getpid()}")  # whole or not at all
            shutil.copytree(library.prefix, own)
            build_gst(own, source=source, flags=("-O1",))
            own.rename(prefix)
    return plugin


def environment() -> dict[str, str]:
    """For programs that find the element, and nothing that may lie on this machine."""
    folder = built().path.parent
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("GST_", "EDGELSTM_"))},
        "GST_PLUGIN_PATH": str(folder),
        "GST_REGISTRY": str(folder.parent / "registry.bin"),
        "EDGELSTM_ONNXRUNTIME": str(c_library.find_onnxruntime()),
        "G_DEBUG": "fatal-criticals",
    }


def runs(*given: dict[str, Any]) -> list[dict[str, Any]]:
    """What came of each, by gst_harness.py in one process."""
    program = Path(__file__).with_name("gst_harness.py")
    done = subprocess.run(
        [gstreamer._python("a test"), program], input=json.dumps(given), capture_output=True, text=True, check=False,
        timeout=120, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # G_DEBUG: nothing is wrong for GStreamer either
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def one(
    model: Path, caps: str, frames: Array, do: list[list[Any]] | None = None, **more: Any
) -> dict[str, Any]:
    """A run over raw frames [K, ...]; GStreamer's rows begin at multiples of 4."""
    folder = model.parent
    number = len(list(folder.glob("frames*")))
    place, out = folder / f"frames{number}.raw", folder / f"out{number}.raw"
    if caps.startswith("video"):
        rows = np.ascontiguousarray(frames).view(np.uint8).reshape(*frames.shape[:2], -1)
        frames = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 4)))
        caps = caps.format(
            *rows.shape[1:2], rows.shape[2] // (3 if "RGB" in caps else 2 if "16" in caps else 1)
        )
    place.write_bytes(np.ascontiguousarray(frames).tobytes())
    properties = {"model": model, "threads": 1, **more.pop("properties", {})}
    return {
        "properties": {k: str(v) for k, v in properties.items()}, "caps": caps, "frames": str(place), "out": str(out),
        "size": frames[0].nbytes, "do": do if do is not None else [["frame", k, 100 * k] for k in range(len(frames))], **more,
    }  # fmt: skip


def result(given: dict[str, Any], dtype: str, *shape: int) -> Array:
    """What came out of a run, [K, *shape]."""
    found: Array = np.frombuffer(Path(given["out"]).read_bytes(), dtype).reshape(-1, *shape)
    return found
