"""From a step graph to a better one: one file a pass, each a plain function that never edits its input.

May import: graph and below.
"""
