"""What to measure next: an Optuna study asked and told, alone or shared by several machines, and external proposals.

It turns rows into objective values and never measures anything; it imports neither `run` nor any later room.
"""
