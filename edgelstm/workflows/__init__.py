"""One function a command, a file each, for people who script; the command line prints what these return and adds nothing.

``frames`` and ``sequences`` hold what several share. May import every room but cli, bench and demo.
Nothing is imported here: ``run`` has to work where onnx and torch are absent.
"""
