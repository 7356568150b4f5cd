"""Environment: what MLX reads from environment variables when it starts, and the folder of its compiled kernels.

Imports no MLX and no other engine room but errors and system.
"""
