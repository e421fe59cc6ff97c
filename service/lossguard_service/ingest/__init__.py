"""The way in: chunks and heartbeats of trainers."""
