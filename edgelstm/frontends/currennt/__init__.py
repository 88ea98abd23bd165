"""CURRENNT networks (.jsn): ``file`` reads, ``graph`` writes the step or window, ``program`` is the reference in NumPy.

May import: runtime.protocol, graph and below.
"""
