"""Atomic writes, npy, npz and JSON; nothing about physics."""
