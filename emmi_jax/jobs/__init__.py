"""The commands from start to end, console included: one file per command."""
