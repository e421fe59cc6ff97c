"""Saved runs: readers for traces, logs and event files, and replay."""
