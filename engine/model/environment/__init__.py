"""Environment: the knobs that MLX reads from environment variables, and the folder of its compiled kernels.

Imports no model and no other engine room but errors, knobs and system. Only `metal` imports MLX.
"""
