"""Sanitize: where mlx-lm's own `sanitize` takes every expert's weights from, found by running it on a small copy.

Covers the layouts that names alone do not tell. Never reads a weight; imports MLX only inside functions, when it is needed.
"""
