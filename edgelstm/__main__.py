"""``python -m edgelstm`` is the command ``edgelstm``."""

from edgelstm.cli import main

main()
