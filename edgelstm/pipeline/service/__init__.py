"""Streams that run for months: what a pipeline file declares, and the threads that keep to it."""
