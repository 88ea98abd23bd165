"""Every live source has a folder with a README and a sample of its section; the samples joined are a pipeline file."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from edgelstm.pipeline.sources import LIVE, is_live

pytest.importorskip("pydantic")

from edgelstm import Pipeline

SAMPLES = sorted((Path(inspect.getfile(LIVE[0].open)).parents[1]).glob("*/sample.toml"))


def test_the_samples_joined_are_a_pipeline_file(tmp_path: Path) -> None:
    text = "\n".join(path.read_text("utf-8") for path in SAMPLES)
    names = set(re.findall(r"\$\{(\w+)\}", text))
    config = Pipeline.from_text(
        f'[models.m]\npath = "m.onnx"\n{text}', tmp_path, dict.fromkeys(names, "x")
    ).config
    assert sorted(config.streams) == sorted(path.parent.name for path in SAMPLES)
    assert all(is_live(stream.source) for stream in config.streams.values())


@pytest.mark.parametrize("kind", LIVE, ids=lambda kind: kind.open.__name__)
def test_each_has_its_folder(kind: object) -> None:
    folder = Path(inspect.getfile(kind.open)).parent  # type: ignore[attr-defined]
    assert (folder / "README.md").is_file()
    assert folder / "sample.toml" in SAMPLES


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.parent.name)
def test_what_stands_commented_out_may_be_said(path: Path, tmp_path: Path) -> None:
    """Keys of the samples' comments are keys of the file."""
    lines = path.read_text("utf-8").splitlines()
    for k, line in enumerate(lines):
        if not re.match(r"# \w+ = ", line):
            continue
        key = line[2:].partition(" =")[0]
        kept = [other for other in lines if not other.startswith(f"{key} =")]
        text = "\n".join([*kept, line[2:]])
        names = set(re.findall(r"\$\{(\w+)\}", text))
        assert k
        Pipeline.from_text(f'[models.m]\npath = "m.onnx"\n{text}', tmp_path, dict.fromkeys(names, "x"))
