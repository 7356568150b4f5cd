"""What to measure next: proposals of an Optuna study, local or shared by several machines, and of external programs.

It turns rows into objective values and never measures anything; it imports neither `run` nor any later room.
"""
