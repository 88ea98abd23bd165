"""PyTorch: modules, TorchScript files and checkpoints become a StepModel. The only room that imports torch.

A module is never read, it is run: ``recognise`` asks ``conventions`` for guesses how it may be called, ``trial`` bears one
out or gives the reason, ``trace`` exports it. README.md beside this file lists the conventions in their order.
"""
