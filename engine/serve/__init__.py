"""Serving: an OpenAI-compatible server on mlx-lm's, and its prompt cache; it never imports the commands."""
