"""Ships journals to the service: in its own process (`lossguard sidecar`) or in a thread of the trainer.

Guarantees. Chunks arrive at least once and in order within an attempt, attempts of a run in the order of their start;
the service stores each once. Only what was acknowledged is deleted. A chunk that the service refuses is set aside with
the reason, and reported. Everything else is tried again: exponential backoff, jitter, the service's Retry-After.
"""
