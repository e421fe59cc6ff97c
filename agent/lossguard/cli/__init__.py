"""The `lossguard` command: one module per command, composed in `main`."""
