"""Anchor caches and the streaming of queries."""
