"""One run becomes one row: pruned by arithmetic, or measured in a child process; never prints and never proposes a setting.

Nothing is imported here, because the child imports neither Optuna nor pandas nor Hydra.
"""
