"""Shapes: published Mixture-of-Experts models as their configurations and sizes, without their weights.

`engine.shapes.library` reads them, one JSON file each; a `Shape` then gives what headers give of a checkpoint. The numbers
follow from the module that mlx-lm builds from the configuration. MLX is imported inside functions only.
"""
