"""Streaming: a token's path through layers whose experts may be missing; imports plans and caches, never the engine."""
