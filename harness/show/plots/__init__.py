"""Plots: the front and the session as PNG and SVG files. Never prints and never changes a row."""
