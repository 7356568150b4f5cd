"""Disk reads: opens files and owns the native threads that bring bytes to memory; imports MLX only for its CUDA device."""
