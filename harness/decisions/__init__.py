"""Decisions: what follows from the rows for the next run; pure functions of rows. It never runs or prints anything."""
