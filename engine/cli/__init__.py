"""Command line: parsers, options, progress and the commands of `python -m engine`. Never imported by another room."""
