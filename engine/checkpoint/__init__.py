"""Checkpoints: where the bytes of every routed expert lie, from the headers alone.

Covers safetensors files as published, MLX conversions and packed stores. Imports only `engine.errors`; never imports MLX.
"""
