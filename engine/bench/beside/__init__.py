"""Benchmark against another checkout of Headrace, of any revision since c409c3e; the same interpreter runs both in turns."""
