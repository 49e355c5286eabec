"""A run on disk: its configuration, checkpoints, and the surrogate they make."""
