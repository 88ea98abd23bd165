"""macOS and Windows, as far as can be seen from here: the CPU path where what only Linux or only POSIX has is taken away.

Other packages are loaded first, as they are; then names, modules, /proc and what Python says of the system go, and our code runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zoo
from edgelstm.files import without_drive
from edgelstm.frontends import is_factory
from edgelstm.workflows.streaming import named_sources

ROOT = Path(__file__).resolve().parents[1]
TAKEN = """
import builtins, importlib.abc, io, json, os, platform, shutil, signal, subprocess, sys, tempfile
import h5py, numpy, onnx, onnxruntime, pydantic, rich.console, rich.progress, rich.table, safetensors.numpy, typer
import email, http.server, logging.handlers, multiprocessing, zipfile
from numpy.lib import format
import sysconfig
platform.uname(), platform.processor(), sysconfig.get_config_vars(), sysconfig.get_paths()
system, commands = sys.argv[1], json.loads(sys.argv[2])
POSIX = '''fork forkpty getuid geteuid getgid getegid uname setsid killpg getpgid getpgrp sysconf getloadavg mkfifo nice wait
posix_fallocate posix_fadvise sendfile fchown chown statvfs pread pwrite O_CLOEXEC O_NONBLOCK'''.split()
LINUX = '''sched_getaffinity sched_setaffinity memfd_create eventfd getrandom copy_file_range pipe2
splice posix_spawnp pidfd_open'''.split()
if system == "win32":  # where Python asks Windows itself
    room = shutil.disk_usage(os.getcwd())
    shutil.disk_usage = lambda path: room
for name in LINUX + (POSIX if system == "win32" else []):
    if hasattr(os, name):
        delattr(os, name)
SIGNALS = "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGQUIT SIGTSTP SIGWINCH".split()
for name in (SIGNALS if system == "win32" else ["SIGRTMIN", "SIGSTKFLT"]):
    if hasattr(signal, name):
        delattr(signal, name)
MISSING = {"fcntl", "resource", "termios", "pwd", "grp", "tty", "pty", "syslog", "readline"} if system == "win32" else set()
for name in MISSING:
    sys.modules.pop(name, None)

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
opened = io.open
def without_proc(file, *args, **kwargs):
    if str(file).startswith(("/proc", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return opened(file, *args, **kwargs)
io.open = builtins.open = without_proc
sys.platform = system
platform.system = lambda: {"win32": "Windows", "darwin": "Darwin"}[system]
"""
RUN = """
from edgelstm.cli import main
for command in commands:
    sys.argv = ["edgelstm", *command]
    try:
        main()
    except SystemExit as end:
        print("ended", command[0], end.code, flush=True)
"""


def on(
    system: str, *commands: tuple[object, ...], code: str = TAKEN + RUN
) -> subprocess.CompletedProcess[str]:
    listed = json.dumps([[str(word) for word in words] for words in commands])
    command = [sys.executable, "-c", code, system, listed]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("system", ["win32", pytest.param("darwin", marks=pytest.mark.thorough)])
def test_the_cpu_path_needs_nothing_that_only_linux_has(system: str, tmp_path: Path) -> None:
    for package in ("h5py", "pydantic", "safetensors"):
        pytest.importorskip(package)
    example = ROOT / "examples" / "sensor_lstm"
    model, stream = tmp_path / "m.onnx", example / "test_stream.npz"
    keras = next((ROOT / "tests" / "golden" / "keras").glob("*.h5"), None)
    (tmp_path / "p.toml").write_text(
        f"[models.m]\npath = {str(model)!r}\n[streams.a]\nsource = {str(stream)!r}\nlimit = 20\nsink = 'y.jsonl'\n"
    )
    walk: list[tuple[object, ...]] = [
        ("export", example / "model.safetensors", "-o", model, "--limit", 5),
        ("run", model, "--source", stream, "-o", tmp_path / "y.npz", "--limit", 30),
        ("serve", tmp_path / "p.toml"),
        *([("doctor", "--json")] if system == "darwin" else []),
    ]
    if system == "win32":  # which lacks what the other lacks, and more
        walk += [
            ("calibrate", model, "--source", stream, "-o", tmp_path / "c.json", "--limit", 60),
            ("quantize", model, "--calibration", tmp_path / "c.json", "-o", tmp_path / "q.onnx"),
            ("verify", model, tmp_path / "q.onnx", "--source", stream, "--limit", 30),
            ("report", model, "--source", stream, "-o", tmp_path / "r.html", "--limit", 20),
        ]
    if keras is not None:
        walk.append(("export", keras, "-o", tmp_path / "k.onnx", "--limit", 5))
    done = on(system, *walk, ("run", tmp_path / "none.onnx", "--source", stream))
    ended = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert ended == [[str(words[0]), "0"] for words in walk] + [["run", "2"]], done.stderr
    assert "Traceback" not in done.stderr
    assert len(np.load(tmp_path / "y.npz")["y"]) == 30
    assert len((tmp_path / "y.jsonl").read_text().splitlines()) == 20


def test_the_test_takes_things_away() -> None:
    """It would show a call that only Linux has."""
    tries = "for code in ('os.sched_getaffinity(0)', 'import fcntl', 'open(\"/proc/self/status\")'):\n"
    tries += "    try: exec(code)\n    except Exception as error: print(type(error).__name__)\n"
    said = on("win32", code=TAKEN + tries).stdout.split()
    assert said == ["AttributeError", "ModuleNotFoundError", "FileNotFoundError"]


def test_the_colon_of_a_drive_separates_nothing(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    assert without_drive("C:\\data\\x.npz:frames") == "\\data\\x.npz:frames"
    assert without_drive("nets.py:Net") == "nets.py:Net"
    assert not is_factory("C:\\models\\none.onnx")
    assert is_factory("C:\\models\\nets.py:Net")
    assert is_factory("m:Net")
    assert list(named_sources(["C:/a/left.npy", "C:/a/right.npy:key=x"])) == ["left", "right"]
