"""A study: its configuration checked and frozen before anything runs, and the files that identify it.

Nothing is imported here, so the child process of a run stays light; the room imports no analysis of rows.
"""
