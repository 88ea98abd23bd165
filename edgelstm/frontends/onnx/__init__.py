"""ONNX files made elsewhere become a StepModel: ``importer`` is the door.

``source`` reads, ``borders`` finds the axes and fixes sizes, ``state_pairs`` proposes what is fed back, ``file`` writes the step,
``program`` runs the file as it was. May import: passes, runtime, graph and below.
"""
