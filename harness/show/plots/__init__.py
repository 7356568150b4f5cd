"""Plots of a study: its front and its session, in one style; nothing but `show` and the commands draws them."""
