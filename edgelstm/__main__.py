"""``python -m edgelstm`` is the command ``edgelstm``."""

import os
import sys
import threading

from edgelstm.cli import main


def command() -> None:
    """The command line, and the end of its process."""
    try:
        main()
    except SystemExit as end:
        # A camera that is still being opened is left behind in its library: Python's own end would pull the ground from under it.
        left = any(t.name.startswith(("opening ", "source ")) for t in threading.enumerate())
        if left and isinstance(end.code, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


if __name__ == "__main__":
    command()
