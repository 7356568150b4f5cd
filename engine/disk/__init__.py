"""Disk reads: bytes from files to memory, in threads that never touch MLX (`cuda_copy` initializes its device first)."""
