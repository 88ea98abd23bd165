"""The torch package itself, or the name of the extra that brings it."""

from __future__ import annotations

from typing import Any

from edgelstm.errors import EdgeLstmError


def import_torch() -> Any:
    """The torch package; EdgeLstmError naming the extra when it is missing."""
    try:
        import torch
    except ImportError as error:
        raise EdgeLstmError(
            "this needs PyTorch, which is not installed", hint="pip install 'edgelstm[torch]'"
        ) from error
    return torch
