"""Server: one loaded engine behind the OpenAI API, on mlx-lm's own server. Imports no other room but the engine's, and is
imported by the command line only.
"""
