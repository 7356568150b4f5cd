"""Environment: the knobs of one backend of MLX, its environment variables, and the folder of its compiled kernels.

Imports no model and no other engine room but errors, knobs and system. Only `backend_knobs` imports MLX.
"""
