"""Rounds: a round's result becomes a stated change of the search space, which the next round tests and keeps or discards.

It reads rows and writes files of the study; it measures nothing and imports neither `session` nor `bench`.
"""
