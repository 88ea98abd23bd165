"""The capability table: complete, and it refuses early with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgelstm.engine.capability import ARCHITECTURES, LIBRARIES, architecture, check, library, table
from edgelstm.errors import EdgeLstmError
from edgelstm.passes.placement import GPUS


@pytest.mark.parametrize(
    ("version", "row"),
    [
        ("8.5.2.2", "8.5"),
        ("10.3.0.26", "10.3"),
        ("10.7.0", "10.3"),
        ("10.13.3.9", "10.13"),
        ("11.1", "11.0"),
        ("11.4.1.2", "11.4.1"),
        ("99.0", "11.4.1"),
    ],
)
def test_a_version_has_the_row_of_its_release_line(version: str, row: str) -> None:
    assert library("tensorrt", version).name == row


def test_rows_are_in_order_and_every_gpu_is_there() -> None:
    since = [row.since for row in LIBRARIES if row.runtime == "tensorrt"]
    assert since == sorted(since)
    assert {a.key for a in ARCHITECTURES} == set(GPUS)
    assert architecture("8.7").label == "Orin"


def refusal(version: str, targets: tuple[str, ...], runtime: Any = "tensorrt", **what: Any) -> str:
    with pytest.raises(EdgeLstmError) as caught:
        check(library(runtime, version), targets, **{"precisions": ("fp32",), **what})
    return str(caught.value)


def test_refusals_say_why() -> None:
    with pytest.raises(EdgeLstmError, match="too old"):
        library("tensorrt", "7.2.1")
    assert "no strongly typed networks" in refusal("8.5.2", ("7.2",))
    assert "no plugins" in refusal("1.7.1", ("8.6",), "tensorrt-rtx", plugin=True)
    assert "timing cache" in refusal("1.7.1", ("8.6",), "tensorrt-rtx", timing_cache=True)
    assert "Orin (compute capability 8.7) does not multiply in fp8" in refusal(
        "10.3.0", ("8.7",), precisions=("fp32", "fp8")
    )
    assert "found 11.0 (Thor)" in refusal("10.3.0", ("11.0",))
    assert "found 7.2 (Xavier)" in refusal("10.3.0", ("7.2",))
    assert "no DLA core" in refusal("10.13.0", ("8.7",), dla=True)
    assert "no DLA core on Ada" in refusal("10.3.0", ("8.9",), dla=True)
    assert "compute capability: found 3.5" in refusal("10.3.0", ("3.5",))


@pytest.mark.parametrize("capability", [c for a in ARCHITECTURES for c in a.capabilities])
def test_tensorrt_for_rtx_leaves_gpus_out_between_those_it_has(capability: str) -> None:
    """Orin (8.7), Hopper, Thor and data-centre Blackwell lie between 7.5 and 12.1, and have no number in its builder."""
    if capability in ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"):
        check(library("tensorrt-rtx", "1.7.1"), (capability,), precisions=("fp32",))
    else:
        said = refusal("1.7.1", (capability,), "tensorrt-rtx")
        assert "compiles for compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1: found " + capability in said


def test_the_row_of_tensorrt_for_rtx_is_what_its_builder_has() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    names = {"SM" + c.replace(".", "") for c in library("tensorrt-rtx", rtx.__version__).only}
    assert {name for name in rtx.ComputeCapability.__members__ if name.startswith("SM")} == names


def test_what_is_there_passes() -> None:
    check(library("tensorrt", "10.3.0"), ("8.7",), precisions=("int8", "fp16"), plugin=True, dla=True)
    check(library("tensorrt", "10.13.0"), ("11.0",), precisions=("fp8",), plugin=True, timing_cache=True)
    check(library("tensorrt-rtx", "1.7.1"), ("8.6", "12.0"), precisions=("int8", "bf16"))


def test_the_documentation_shows_this_table() -> None:
    """docs/tensorrt.md holds the table as `table()` gives it."""
    text = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    for row in table():
        assert "| " + " | ".join(row.values()) + " |" in text, row["what"]
