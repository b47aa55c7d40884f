"""Verification: a statistic at every point, area-weighted sums that merge, scores as functions of their means."""
