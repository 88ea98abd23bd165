"""Everything that turns a float graph into fewer bits: ranges observed with the state carried, and graphs written with them.

``calibrate`` fills a ``Calibration`` by ``observer``, ``ranges`` and ``correlation``; ``qdq`` and ``precision`` write graphs;
``mix`` searches what to quantise. May import: verify, runtime, passes, graph and below.
"""
