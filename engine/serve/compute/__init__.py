"""Generation side of the server: the queue, the generation thread and the limits of a context. Knows nothing of HTTP."""
