"""What each command does from start to end, console included: one file per command."""
