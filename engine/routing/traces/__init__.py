"""Traces: what a trace holds beside the choices (predictions, passes), as a table and read back for a replay."""
