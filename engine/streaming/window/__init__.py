"""Window: speculative decoding of several layers per sync; only `engine.streaming.install` and the engine use it."""
