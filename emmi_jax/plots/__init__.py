"""Figures: arrays in, PNG files and HTML pages out."""
