"""Saved runs: readers for traces, logs and event files, and replay.

`read.read(path)` finds the reader; `replay.replay(trace)` runs the detectors over it exactly as the service does.
"""
