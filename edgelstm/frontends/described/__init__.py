"""Weights that state their architecture in the file: ``architecture`` says what there is, ``graph`` writes it as a step.

``reference`` computes the same with NumPy. No training framework is needed. May import: runtime.protocol, graph and below.
"""
