"""Attention over token grids. Imports nothing else of ours, so that the backbone may choose among its kinds.

In reading order: `window` (exact, inside windows or over everything).
"""
