"""Machine: the figures of a machine that turn a token's work into time, measured here or published in a profile."""
