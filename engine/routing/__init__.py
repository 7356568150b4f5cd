"""Routing: the routers' choices, recorded, read back and summed up; never imports caches, plans or streaming."""
