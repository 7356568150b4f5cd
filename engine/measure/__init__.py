"""Measure: fixed texts, the protocol, one timed pass and its figures; imports neither the engine nor streaming."""
