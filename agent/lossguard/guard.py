"""The one place where an error of ours is swallowed, so that a trainer never sees it.

Stands at the few entries that training code calls. What it swallows is logged (the 1st, 10th, 100th, ... of its kind,
with its traceback) and counted. `KeyboardInterrupt` and `SystemExit` pass: they are the user's. In tests the fixture
`guard_raises` replaces `swallow`, so that nothing hides.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("lossguard")
_seen: dict[tuple[str, type[BaseException]], int] = {}


def swallow(entry: str, error: BaseException) -> None:
    """Log and count an error that the trainer must not see."""
    kind = (entry, type(error))
    count = _seen[kind] = _seen.get(kind, 0) + 1
    if count == 10 ** (len(str(count)) - 1):
        _log.warning(
            "Lossguard: %s failed (%d times so far); training goes on without it: %s",
            entry,
            count,
            error,
            exc_info=error,
        )


def swallowed() -> int:
    """How many errors were swallowed in this process."""
    return sum(_seen.values())


def guarded(entry: str, otherwise: T) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate an entry: an exception in it is swallowed and `otherwise` returned.

    Args:
        entry: what the log calls it, for example "Recorder.record".
        otherwise: the answer in place of the exception.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _swallow(entry, error)
                return otherwise

        return call

    return decorate


def _swallow(entry: str, error: Exception) -> None:
    # Looked up at the call, so that the tests' fixture can replace it.
    handler: Callable[[str, Exception], Any] = globals()["swallow"]
    handler(entry, error)
