"""Model: mlx-lm's own model, opened without its experts and probed for what its routers do; imports no streaming code."""
