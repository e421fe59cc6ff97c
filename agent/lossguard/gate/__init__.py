"""The release side of the gate: what an export is, what the service says about it, and how it becomes visible.

Guarantees. Nothing here needs TensorFlow or the service's packages. Everything but a `pass` for exactly these bytes
blocks: an unreachable service, a verdict about something else, a changed byte. A folder that TensorFlow Serving reads
never shows half a model.
"""
