"""Made the files in segments/: `python tests/golden/make_segments.py`.

Writes only what is not there: old bytes stay as an old version wrote them. Only `in-one.npz` is of the format that this
version gives to so few values; `first.npz` is a segment as it was before the steps had a part of their own too.
"""

from pathlib import Path

import numpy as np
from make_wire_and_journal import frames

from lossguard_service.store import layout, pyramid

HERE = Path(__file__).parent / "segments"


def main() -> None:
    """Write what is missing."""
    block = frames()
    for name, held in (("in-one", layout.build(block)), ("pyramid", pyramid.build(block, np.array([0, 2])))):
        if not (HERE / f"{name}.npz").exists():
            np.savez(HERE / f"{name}.npz", **{str(part): np.frombuffer(data, "u1") for part, data in held.items()})


if __name__ == "__main__":
    main()
