"""Soak test of the whole search: its faulty engine, its interrupted starts and the checks at its end."""
