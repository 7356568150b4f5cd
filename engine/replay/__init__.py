"""Replay: what a setting would miss and read on recorded or made-up routing, without a model, a disk or a computation."""
