"""The names of projects and runs: one rule for folders, URLs, tables and pages.

A name has 1 to 128 bytes of UTF-8, all printable, without `/` and `\\`, no dot at its beginning and no space around
it. So a name is a folder's name and one segment of a URL as it stands.
"""

MAX_BYTES = 128


def check_name(kind: str, name: object) -> str:
    """The name, if it is one.

    Args:
        kind: what is named, for the message: "project" or "run".
        name: to check.

    Raises:
        ValueError: the name breaks the rule; the message says how.

    >>> check_name("run", "dlrm v2, lr=0.1")
    'dlrm v2, lr=0.1'
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{kind}: must be a name, got {name!r}")
    if not name.isprintable():
        raise ValueError(f"{kind}: must be printable, got {name!r}")
    if len(name.encode()) > MAX_BYTES:
        raise ValueError(f"{kind}: at most {MAX_BYTES} bytes, got {len(name.encode())}: shorten it")
    if "/" in name or "\\" in name:
        raise ValueError(f"{kind}: must not contain / or \\, got {name!r}")
    if name.startswith(".") or name != name.strip():
        raise ValueError(f"{kind}: must not begin with a dot or have spaces around it, got {name!r}")
    return name
