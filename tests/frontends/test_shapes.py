"""What a user says of a shape is checked before anything is allocated."""

from __future__ import annotations

import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.examples import read_frames

pytest.importorskip("torch")


def test_a_frame_that_no_memory_holds_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"frame 'x' is too large: found \[99999999999\]; expected at most"
    ):
        read_frames((99_999_999_999,))
