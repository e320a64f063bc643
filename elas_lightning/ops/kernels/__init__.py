"""Triton kernels behind the ops, each with ``ops/reference.py`` or the plain composition as its specification.

Nothing here is imported before a kernel is asked for: ``import elas_lightning`` works without Triton.
"""
