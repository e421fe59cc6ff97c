"""Writes `generated/`, or with `--check` says which of its files are not what the code says (exit code 1)."""

import sys
from pathlib import Path

from dashboards.files import files

FOLDER = Path(__file__).parent / "generated"


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit code."""
    wanted = files()
    if arguments == ["--check"]:
        present = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
        stale = [name for name, text in wanted.items() if name not in present or (FOLDER / name).read_text() != text]
        stale += sorted(present - wanted.keys())
        for name in stale:
            print(f"{name} is not what the code says: run python -m dashboards", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print("usage: python -m dashboards [--check]", file=sys.stderr)
        return 2
    for name, text in wanted.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
