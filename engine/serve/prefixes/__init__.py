"""Prompt prefixes on disk: one file each with its KV cache; it never imports the server."""
