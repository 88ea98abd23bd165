"""What tests compile is compiled once: the other workers of pytest-xdist wait for it and take it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else builds ``path`` meanwhile; look whether it is there inside. A process that ends lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        try:
            import fcntl
        except ImportError:  # Windows: built by each
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
