"""The demo: a multitask ranker trained twice on a stream of interactions, watched, judged at the gate, published.

Everything in it is a real part: real rows or a seeded stream of the same shape, a TensorFlow model that truly
diverges, the service and the sidecar as processes, and the gate of a release pipeline. No fault is injected.
"""
