"""Dashboards and alert rules as code. `python -m dashboards` writes `generated/`; with `--check` it only compares."""
