"""Work that may turn out to need no transaction: it is tried with a stand-in for the connection.

What an ordinary chunk makes of its run follows from what is remembered of it; the same code opens attempts, writes
incidents and reads old frames where there is something of that. Tried with `NoTransaction`, it ends where that begins.
"""

from typing import NoReturn


class NeedsTransaction(Exception):
    """The work asked for the database; nothing was written."""


class NoTransaction:
    """Stands where a connection would."""

    def __getattr__(self, name: str) -> NoReturn:
        """Whatever is asked of a connection."""
        raise NeedsTransaction(name)
