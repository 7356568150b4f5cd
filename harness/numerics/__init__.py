"""Numerics: statistics on plain arrays. It never imports another room of harness."""
