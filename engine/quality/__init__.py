"""Quality: how far a model under its knobs is from the unchanged model; the only room that imports the engine's facade."""
