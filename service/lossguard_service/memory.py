"""How the process asks its C library for memory.

glibc gives each thread an arena of its own, up to eight for each core, and an arena keeps the most that its thread ever
needed. A replica works in a dozen threads, each of which decodes tens of megabytes now and then: after an hour of a
thousand runs 240 of its 450 MB were free memory in nine arenas, and every further thread added to it
(docs/decisions/0411-two-arenas.md).
"""

import ctypes
from typing import Final

ARENAS: Final = 2
_M_ARENA_MAX: Final = -8


def share_arenas() -> bool:
    """Let all threads share two arenas; True if the C library knows how to, which only glibc does.

    To be called before threads begin: an arena that is there stays.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_ARENA_MAX, ARENAS))
