"""Every key of a pipeline file with a value that can't be: one error that names line and key, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zoo
from edgelstm import EdgeLstmError, Pipeline

pytest.importorskip("pydantic")

from edgelstm.pipeline.service.config import ModelSection, ServiceSection, StreamSection

LINES = ["[service]", "[models.m]", 'path = "model.onnx"', "[streams.a]", 'source = "a.npy"']
SECTIONS: dict[str, Any] = {
    "[service]": ServiceSection,
    "[models.m]": ModelSection,
    "[streams.a]": StreamSection,
}
KEYS = [(head, key) for head, section in SECTIONS.items() for key in section.model_fields]
#: Of no key's type.
WRONG = ("[[1]]", "1979-05-27", "{ x = { y = [] } }")


@pytest.mark.parametrize(("head", "key"), KEYS)
def test_a_value_that_can_not_be_is_named_with_its_line(tmp_path: Path, head: str, key: str) -> None:
    zoo.lstm().save(tmp_path / "model.onnx")
    before = sorted(p.name for p in tmp_path.iterdir())
    for value in WRONG:
        lines = [line for line in LINES if not line.startswith(f"{key} ")]
        place = lines.index(head) + 1
        lines.insert(place, f"{key} = {value}")
        with pytest.raises(EdgeLstmError) as caught:
            Pipeline.from_text("\n".join(lines), tmp_path).run()
        name = f"{head.strip('[]')}.{key}"
        assert f"line {place + 1}: {name}" in str(caught.value), (value, str(caught.value))
        assert sorted(p.name for p in tmp_path.iterdir()) == before
