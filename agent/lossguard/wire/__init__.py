"""What the trainer's side and the service agree on: stats, frames, chunks, replies, verdicts.

Depends on the standard library, NumPy and the codec library only, so that either side can import it cheaply.
"""
