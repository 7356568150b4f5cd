"""Runs: what the runs of a study took and how they went: time budget, order in time, forecasts beside measurements."""
