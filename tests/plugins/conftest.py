"""Fixtures that several files of this folder share."""

from __future__ import annotations

import pytest
from adapter_library import Adapters


@pytest.fixture(scope="session")
def adapters() -> Adapters:
    """Plugin libraries by TensorRT version: each is built when it is first asked for, the kernels once."""
    return Adapters()
