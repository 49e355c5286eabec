"""Samples, draws, normalization, statistics, data sets and their splits."""
