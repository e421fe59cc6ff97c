"""Detectors: pure functions from frames to incidents.

Nothing in this room reads a clock, a file or a random number: the same frames give the same incidents, live, replayed,
in blocks of any size, and after a round trip through a database. `monitor` is the one entry point; a detector of one's
own is described in docs/detection.md.
"""
