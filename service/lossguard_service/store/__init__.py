"""All SQL of the service. What leaves this room is plain dataclasses and NumPy arrays.

Functions that read or write take a `Database` first and are coroutines; nothing here loads lazily, and every table that
grows is keyed by its run first, so that no statement needs two runs.
"""
