"""Attention over token grids. Imports nothing else of ours, so that the backbone may choose among its kinds.

In reading order: `window` (exact, inside windows or over everything); `partial` (parts and how they merge); wave
attention: `wave_index`, `wave_store`, `wave_buffer`, `certificate`, `wave` (decoding), `certified`, `wave_field` (all
queries); and how it is measured: `probe`, `rivals`, `bench`.
"""
