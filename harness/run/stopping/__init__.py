"""Stopping: which runs are not made, which end early and whose scoring ends early, with a stated probability of error."""
