"""Comparison of studies: recommended settings, fronts and identities, as text, JSON and pictures.

It reads rows and manifests only and measures nothing; it imports neither `rounds` nor `session`.
"""
