"""Meters: heat, energy and the kind of process, each by one function that returns None where the system has no such figure.

Imports only `engine.errors`.
"""
