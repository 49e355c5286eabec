"""Wiring of layers into whole models."""
