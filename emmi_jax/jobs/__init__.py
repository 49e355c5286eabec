"""The commands from start to end, console included: a file per command, and what several of them share."""
