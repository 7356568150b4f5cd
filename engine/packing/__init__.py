"""Packing: turns a checkpoint into a store of progressive records, in numpy and worker threads; never imports MLX."""
