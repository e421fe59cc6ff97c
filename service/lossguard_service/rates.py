"""How much each token may send to this replica: chunks and bytes a second, with room for ten seconds at once.

Guarantees. Who stays below the rate is never refused; who does not is refused until what was taken is worked off, and
told for how long. A chunk may be larger than the room: it is taken while nothing is owed. Memory is bounded. The time
comes in with the clock.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from lossguard_service.errors import TooMany

BURST_SECONDS: Final = 10.0
_REMEMBERED: Final = 4096


class Rates:
    """Counts what each token sends; one per replica.

    Args:
        chunks_per_second, bytes_per_second: for each token; None is no limit.
        clock: Unix seconds.
    """

    def __init__(
        self, chunks_per_second: float | None, bytes_per_second: float | None, clock: Callable[[], float]
    ) -> None:
        self._limits = (("chunks", chunks_per_second), ("bytes", bytes_per_second))
        self._clock = clock
        self._owed: OrderedDict[str, tuple[float, list[float]]] = OrderedDict()

    def take(self, token: str, size: int) -> None:
        """Count a chunk of `size` bytes that came with a token.

        Raises:
            TooMany: this and what came before is more than the rate; it was not counted.
        """
        if all(limit is None for _, limit in self._limits):
            return
        now = self._clock()
        since, owed = self._owed.pop(token, (now, [0.0, 0.0]))
        # A clock that was put back must not make anybody wait.
        passed = max(0.0, now - since)
        owed = [max(0.0, one - passed * (limit or 0.0)) for one, (_, limit) in zip(owed, self._limits, strict=True)]
        self._owed[token] = now, owed
        while len(self._owed) > _REMEMBERED:
            self._owed.popitem(last=False)
        for place, (what, limit) in enumerate(self._limits):
            # What is owed may reach the room for a burst before anything is refused.
            if limit is not None and owed[place] >= limit * BURST_SECONDS:
                wait = math.ceil((owed[place] - limit * BURST_SECONDS) / limit) + 1
                raise TooMany(
                    f"this token sends more than {limit:g} {what} a second: send fewer, larger chunks, or ask for a "
                    "higher limit",
                    retry_after=wait,
                )
        for place, amount in enumerate((1, size)):
            owed[place] += amount
