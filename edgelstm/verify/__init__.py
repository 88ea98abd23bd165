"""Two Programs over the same frames: how far apart they are, where that leads, and how it is shown.

``drift`` and ``series`` are the mathematics (NumPy only), ``forecast`` scores predictions of what came.
May import: runtime, graph, errors, files, dtypes.
"""
