"""Rows as text and pictures: tables, lines, plots, status and ready commands for a shell.

It computes no statistics and writes only plots; it imports neither `rounds` nor `session`.
"""
