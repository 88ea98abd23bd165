"""Sidecars: what is written is read, what does not belong together is told apart, nothing else gets through."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.sidecar import SCHEMA, Sidecar, file_sha256, load_sidecar, sidecar_path

GOLDEN = Path(__file__).parents[1] / "golden"
SIDECAR = Sidecar(
    zoo.lstm().signature,
    "tensorrt",
    "10.3.0.26",
    streams=(1, 2, 8),
    targets=("8.7",),
    gpu="Orin",
    gates="plugin",
    precision=("fp16", "int8"),
    options={"optimization_level": 5, "tf32": True},
    hashes={"onnx": "ab" * 32, "plugin": "cd" * 32},
    plan_bytes=100,
)


def engine(folder: Path, sidecar: Sidecar = SIDECAR) -> Path:
    """A plan is opaque but for its size and the engine's name in it, so these bytes stand for one."""
    plan = folder / "model.plan"
    data = b"\0ftrt" + sidecar.engine_name.encode() + b"\0"
    plan.write_bytes(data + bytes(200 - len(data)))
    sidecar_path(plan).write_text(replace(sidecar, plan_bytes=200).dumps())
    return plan


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert load_sidecar(engine(tmp_path)) == replace(SIDECAR, plan_bytes=200)


def test_the_first_format_loads_for_ever() -> None:
    text = (GOLDEN / "sidecar-1.json").read_text()
    sidecar = Sidecar.loads(text)
    assert sidecar == SIDECAR
    assert sidecar.engine_name == "edgelstm-7756149d36f0dbed4af34afa67b6d000"


def test_the_name_tells_of_everything_but_the_size() -> None:
    assert replace(SIDECAR, plan_bytes=7).engine_name == SIDECAR.engine_name
    others = [
        replace(SIDECAR, version="10.4"),
        replace(SIDECAR, streams=(1, 1, 8)),
        replace(SIDECAR, hashes={}),
        replace(SIDECAR, signature=zoo.lstm(seed=1).signature),
        replace(SIDECAR, gates="native"),
    ]
    assert len({s.engine_name for s in (SIDECAR, *others)}) == 6


def wrong(plan: Path) -> str:
    with pytest.raises(EdgeLstmError) as caught:
        load_sidecar(plan)
    return str(caught.value)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    assert "does not exist" in wrong(tmp_path / "model.plan")
    plan = engine(tmp_path)
    whole = plan.read_bytes()
    plan.write_bytes(whole[:150])
    assert "found 150 bytes; expected 200 bytes" in wrong(plan)
    plan.write_bytes(whole.replace(b"edgelstm-", b"edgelstm_"))
    assert "engine without our name" in wrong(plan)
    (tmp_path / "b").mkdir()
    other = engine(tmp_path / "b", replace(SIDECAR, version="10.4"))
    other.write_bytes(whole)
    assert f"found engine {SIDECAR.engine_name}" in wrong(other)
    sidecar_path(plan).unlink()
    assert "has no sidecar" in wrong(plan)
    plan.write_bytes(b"")
    assert "has no sidecar" in wrong(plan)


def test_a_plan_that_does_not_hold_its_name_as_text_is_told_by_its_bytes(tmp_path: Path) -> None:
    """A TensorRT that keeps the name otherwise (packed, say) must not have every plan refused."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"\0ftrt" + bytes(195))
    told = replace(SIDECAR, plan_bytes=200, hashes={**SIDECAR.hashes, "plan": file_sha256(plan)})
    assert told.engine_name == SIDECAR.engine_name, "the name is given before there is a plan"
    sidecar_path(plan).write_text(told.dumps())
    assert load_sidecar(plan) == told
    plan.write_bytes(b"\0ftrt" + bytes(194) + b"x")
    with pytest.raises(EdgeLstmError, match="found engine of other bytes"):
        load_sidecar(plan)
    sidecar_path(plan).write_text(replace(told, hashes=SIDECAR.hashes).dumps())
    with pytest.raises(EdgeLstmError, match="found engine without our name"):
        load_sidecar(plan)


@pytest.mark.parametrize("profiles", [[], [[1, 2]], [[2, 1, 3]], 4, [[1, 1, "4"]]])
def test_profiles_that_are_none_are_refused(profiles: object) -> None:
    text = SIDECAR.to_json() | {"options": {"profiles": profiles}, "plan_bytes": 3}
    with pytest.raises(EdgeLstmError, match="key 'options'"):
        Sidecar.loads(json.dumps(text))


def test_an_empty_plan(tmp_path: Path) -> None:
    plan = engine(tmp_path)
    plan.write_bytes(b"")
    assert "found 0 bytes" in wrong(plan)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", SCHEMA + 1),
        ("runtime", "tensorrt-lite"),
        ("streams", [2, 1, 8]),
        ("streams", [1, 1]),
        ("streams", [True, True, True]),
        ("plan_bytes", 0),
        ("plan_bytes", "100"),
        ("hashes", {"onnx": 1}),
        ("targets", "8.7"),
        ("signature", []),
        ("gates", None),
        ("options", 3),
    ],
)
def test_keys_of_another_kind(key: str, value: object) -> None:
    with pytest.raises(EdgeLstmError, match=key):
        Sidecar.loads(json.dumps({**SIDECAR.to_json(), key: value}))


def test_missing_keys() -> None:
    data = SIDECAR.to_json()
    for key in set(data) - {"gpu"}:
        with pytest.raises(EdgeLstmError):
            Sidecar.loads(json.dumps({k: v for k, v in data.items() if k != key}))


_TEXT = SIDECAR.dumps()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_give_one_clear_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(_TEXT)))
    end = data.draw(st.integers(start, min(len(_TEXT), start + 30)))
    text = _TEXT[:start] + data.draw(st.text(max_size=8)) + _TEXT[end:]
    with suppress(EdgeLstmError):  # anything else is a crash
        Sidecar.loads(text)
