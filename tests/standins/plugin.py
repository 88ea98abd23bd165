"""A file that looks like the FusedGates plugin's library to what looks for one. It holds no code."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from edgelstm.runtime.plugin_library import SCHEMA, VARIABLE


@contextlib.contextmanager
def stand_in_plugin(folder: Path, tensorrt: str = "10.13.0") -> Iterator[Path]:
    """The library that is found, for every GPU from compute capability 8.0 on."""
    path = folder / "plugin.so"
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(m := platform.machine().lower(), m)
    built_for = {
        "schema": SCHEMA,
        "tensorrt": tensorrt,
        "cuda": 12060,
        "architectures": [80],
        "ptx": 80,
        "machine": machine,
    }
    path.write_bytes(b"edgelstm-plugin " + json.dumps(built_for).encode() + b"\0")
    with patch.dict("os.environ", {VARIABLE: str(path)}):
        yield path
