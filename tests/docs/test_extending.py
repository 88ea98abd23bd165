"""The samples of docs/extending.md work: each is put into a copy of the source, and its test run there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## A (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NEEDS = {
    "Keras layer": ("keras", "torch", "h5py"),
    "torch convention": ("torch", "onnxscript"),
    "backend": ("openvino",),
}


def apply(section: str, root: Path) -> list[str]:
    """Write the new files and the new lines of a section below ``root``; gives their paths."""
    touched = []
    for language, block in re.findall(r"^```(python|diff)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        first, _, rest = block.partition("\n")
        path = first.removeprefix("# ").removeprefix("+++ ")
        touched.append(path)
        if language == "python":
            assert not (root / path).exists(), path
            (root / path).write_text(rest, "utf-8")
            continue
        text = (root / path).read_text("utf-8")
        for hunk in re.split(r"^@@\n", rest, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines()
            old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
            new = "\n".join(line[1:] for line in lines)
            assert text.count("\n" + old) == 1, f"{path} has not, or not once: {old}"
            text = text.replace("\n" + old, "\n" + new)
        (root / path).write_text(text, "utf-8")
    return touched


def test_there_is_one_of_each_kind() -> None:
    assert list(SECTIONS) == ["pass", "Keras layer", "torch convention", "source", "sink", "backend"]


def copied(root: Path) -> None:
    """The project's code and tests below ``root``."""
    junk = shutil.ignore_patterns("__pycache__", "golden", "docs", "examples")
    for folder in ("edgelstm", "plugins", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=junk)
    shutil.copy(ROOT / "pyproject.toml", root)


def test_samples_fit_the_files_they_change(tmp_path: Path) -> None:
    copied(tmp_path)
    for section in SECTIONS.values():
        assert apply(section, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", SECTIONS)
def test_a_sample_and_its_test(kind: str, tmp_path: Path) -> None:
    for module in NEEDS.get(kind, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    copied(tmp_path)
    touched = apply(SECTIONS[kind], tmp_path)
    assert len([path for path in touched if not path.startswith("tests/")]) <= 2, touched
    tests = [path for path in touched if "test_" in path] or ["tests/contract", "-k", "openvino"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
