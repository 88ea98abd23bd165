"""Packages that not everyone needs, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from edgelstm.errors import EdgeLstmError


def require(module: str, extra: str, purpose: str) -> Any:
    """The imported ``module``; EdgeLstmError naming the ``extra`` to install when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EdgeLstmError(
            f"{purpose} needs the Python package {module.partition('.')[0]}",
            found=str(error),
            hint=f"pip install 'edgelstm[{extra}]'",
        ) from error
