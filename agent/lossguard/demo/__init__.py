"""The demo: a multitask ranker trained twice on a stream of interactions, watched, judged at the gate, published.

Everything in it is a real part: real rows or a seeded stream of the same shape, a TensorFlow model that truly
diverges, the service and the sidecar as processes, and the gate of a release pipeline. No fault is injected.
"""

STEPS = 520
"""Updates of one training: 266,240 examples, one and a quarter passes over the 13 days."""

LEARNING_RATE = 0.5
"""The peak of the ramp, ten times the plateau's rate."""
