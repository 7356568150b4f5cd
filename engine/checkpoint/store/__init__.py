"""Packed stores: experts as progressive records, each of which holds several precisions.

Imports only the modules beside it in `engine.checkpoint`; never imports MLX.
"""
