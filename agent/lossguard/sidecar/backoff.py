"""How long to wait before the next try: exponential, with full jitter, and never less than the service asked for.

Pure but for the random source, which is an argument. Full jitter spreads a thousand sidecars that lost their service
in the same second over the whole interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FIRST_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 60.0
LONGEST_RETRY_AFTER_SECONDS: Final = 600.0


@dataclass(slots=True)
class Backoff:
    """The waits of one run.

    Attributes:
        uniform: draws from [a, b], for example `random.uniform`.
        failures: failed tries in a row.

    >>> waits = Backoff(lambda low, high: high)
    >>> [waits.failed() for _ in range(4)], waits.failed(retry_after_seconds=7.0)
    ([0.5, 1.0, 2.0, 4.0], 15.0)
    """

    uniform: Callable[[float, float], float]
    failures: int = 0

    def failed(self, retry_after_seconds: float | None = None) -> float:
        """Seconds until the next try."""
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self.failures, 30))
        self.failures += 1
        asked = min(retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        # Asked to wait: the jitter comes on top, and is no less than a quarter of the time, or a thousand sidecars that
        # were asked in the same moment come back in the same half second. At least half a second's tenth, so that a
        # drawn zero never makes a tight loop.
        return asked + max(FIRST_SECONDS / 10, self.uniform(0.0, max(longest, asked / 4)))

    def succeeded(self) -> None:
        """Start over."""
        self.failures = 0
