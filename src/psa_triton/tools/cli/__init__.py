"""The `psa` command: one file a command."""
