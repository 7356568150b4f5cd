"""Forecast of a study: the speed of its settings before they run, by arithmetic, fitted to its own rows as they come.

It never decides what is measured, and a study does not fail for its lack.
"""
