"""Places: where a model is on this machine, and what a place holds instead of one; reads no weights, downloads nothing."""
