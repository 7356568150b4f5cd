"""Expert cache: which expert is in which slot, when it is evicted, and how its bytes get there.

Knows single layers only; imports neither the plan nor the streaming of a model.
"""
