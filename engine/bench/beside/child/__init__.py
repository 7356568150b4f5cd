"""Child: what `bench beside` runs inside a checkout, as the package `child` on that checkout's engine.

It imports nothing of the engine by name: `revision` finds the engine's names wherever the checkout's revision has them.
"""
