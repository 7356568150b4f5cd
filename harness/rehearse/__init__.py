"""Rehearsal: runs a published model's full shape with random weights on this machine, before its weights are downloaded.

The store is written and measured by the engine; each setting runs in a process of its own. Nothing here imports a study.
"""
