"""Built model: what mlx-lm makes of a configuration, without weights.

Imports mlx-lm inside functions only, since that takes a second; imports no other engine room but errors.
"""
