"""Generation: text from a model, with sampling, chat templates, stop strings and turns that reuse the prompt cache.

It computes through `engine.streaming`'s forward passes and never imports the engine, its commands or the server.
"""
