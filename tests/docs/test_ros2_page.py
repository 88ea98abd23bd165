"""The node of docs/ros2.md, compiled against stand-ins for ROS 2's headers, and fed with pictures as its executor would."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import c_library
import zoo
from edgelstm.runtime import Runner

ROOT = Path(__file__).resolve().parents[2]
ROS = ROOT / "tests" / "standins" / "ros2"


def compiled(folder: Path, *flags: str) -> None:
    library = c_library.built()
    page = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```cpp\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (folder / "node.cpp").write_text(block)
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(ROS), *library.cflags]
    done = subprocess.run(
        [*command, str(folder / "node.cpp"), *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_node_compiles(tmp_path: Path) -> None:
    compiled(tmp_path, "-fsyntax-only")


@pytest.mark.thorough
def test_the_node_steps_pictures_in_the_order_of_their_time(tmp_path: Path) -> None:
    compiled(tmp_path, str(ROS / "play.cpp"), "-o", str(tmp_path / "node"), *c_library.built().libs)
    model, kept = tmp_path / "model.onnx", tmp_path / "state.npz"
    zoo.conv_lstm(channels=1, hidden=1, size=8).save(model)
    frames = np.random.default_rng(0).integers(0, 256, (7, 8, 8), dtype=np.uint8)

    def node(
        *stamps: int, first: int = 0, encoding: str = "mono8", max_gap: float = 1.0
    ) -> tuple[bytes, str]:
        played = b"".join(
            f"{stamp} 8 8 9 {encoding}\n".encode() + np.pad(frames[first + k], ((0, 0), (0, 1))).tobytes()
            for k, stamp in enumerate(stamps)
        )
        parameters = {
            "model": model,
            "height": 8,
            "width": 8,
            "leads": 1,
            "state_file": kept,
            "max_gap": max_gap,
        }
        done = subprocess.run(
            [tmp_path / "node", *(f"{name}:={value}" for name, value in parameters.items())], input=played, capture_output=True,
            check=False, timeout=60, env={"EDGELSTM_ONNXRUNTIME": str(c_library.find_onnxruntime())},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.decode()

    # The bag begins again, then stands still for too long; another run goes on from the file.
    found, said = node(0, 100, 200, 50, 1300)
    assert said.count("the state begins anew") == 2
    more, _ = node(1400, 1500, first=5, max_gap=60.0)
    refused, said = node(1600, encoding="rgb8", max_gap=60.0)
    assert (refused, "expected 8 x 8, mono8" in said) == (b"", True)
    with Runner.open(model, native=False) as runner:
        stream, wanted = runner.stream("s"), []
        for k, frame in enumerate(frames):
            if k in (3, 4):
                stream.reset()
            wanted.append(stream.step((frame[None] / np.float32(255)).astype(np.float32))["h_next"].copy())
        assert found + more == np.stack(wanted).tobytes()
        stream.snapshot().save(tmp_path / "python.npz")
    assert kept.read_bytes() == (tmp_path / "python.npz").read_bytes()
    # A file that is older than a gap may be.
    os.utime(kept, (time.time() - 100,) * 2)
    found, said = node(1700, max_gap=60.0)
    assert said.count("s old: the state begins anew") == 1
    assert found == wanted[0].tobytes()
