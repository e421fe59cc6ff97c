"""`lossguard-lab`: runs the lab of the source tree, which a wheel does not hold.

The lab (`benchmarks/lab`) checks the paper's claims on one's own machine; it needs the sources that it hashes and the
page that it writes. Installed from a wheel, this program says where to get them.
"""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def main() -> None:
    """Run `benchmarks/lab` with this process's arguments; exit code 2 where it is not there."""
    if not (BENCHMARKS / "lab" / "__main__.py").is_file():
        sys.exit(_explain())
    sys.path.insert(0, str(BENCHMARKS))
    import runpy

    runpy.run_module("lab", run_name="__main__", alter_sys=True)


def _explain() -> int:
    print(
        "lossguard-lab: the lab is in Lossguard's source tree, not in its wheel. In a checkout: "
        'pip install -e ".[lab]" && lossguard-lab, or: make lab',
        file=sys.stderr,
    )
    return 2
