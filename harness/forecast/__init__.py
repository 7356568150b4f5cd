"""Forecast: the speed of a model before it is downloaded, and the published measurements against which it is checked.

`world` reads them from world.yaml. Nothing here imports MLX.
"""
