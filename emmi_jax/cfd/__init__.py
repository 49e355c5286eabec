"""Data sets, sampling, normalisation and figures of flow fields."""
