"""World: published measurements of engines that stream experts, the figures fitted to them, and the check against them.

`measurements` reads them from world.yaml. Nothing here imports MLX.
"""
