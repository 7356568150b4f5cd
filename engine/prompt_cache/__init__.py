"""Prompt caches on disk: a model's state after a text, one file each in mlx-lm's format; never imports engine or server."""
