"""Hydra: overrides of the command line, help and error messages around Hydra's own. Never runs a study."""
