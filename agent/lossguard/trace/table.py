"""CSV: a header, a `step` column (or a name that means it, or none: then rows are counted from 1), and numbers.

Comma, semicolon or tab. An empty cell was not measured; `nan`, `inf` and their relatives are values. Columns without
a single number are passed over. Rows are counted as well where steps are fractions (of an epoch), and where they begin
anew with every epoch (a batch within it): that is no restart.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from lossguard.trace.trace import STEP_NAMES, Trace, TraceError, of_rows


def read(path: Path, given: Mapping[str, str]) -> Trace:
    """Read a CSV file.

    Raises:
        TraceError: no header, no numbers, or no loss.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: not a text file that can be read ({error})") from None
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    lines = [line for line in csv.reader(text.splitlines(), delimiter=delimiter) if line]
    if len(lines) < 2:
        raise TraceError(f"{path}: a header and at least one row are needed")
    header = [name.strip() for name in lines[0]]
    step_at = next((i for name in STEP_NAMES for i, column in enumerate(header) if column.lower() == name), None)
    epoch_at = next((i for i, column in enumerate(header) if column.lower() == "epoch" and i != step_at), None)
    rows: list[tuple[float, dict[str, float]]] = []
    epochs: list[float] = []
    for number, line in enumerate(lines[1:], start=1):
        cells = {name: _number(cell) for name, cell in zip(header, line, strict=False)}
        step = float(number) if step_at is None or step_at >= len(line) else _number(line[step_at])
        if step is None or not math.isfinite(step):
            continue
        values = {
            name: value for i, (name, value) in enumerate(cells.items()) if value is not None and i != step_at and name
        }
        if values:
            rows.append((step, values))
            epoch = _number(line[epoch_at]) if epoch_at is not None and epoch_at < len(line) else None
            epochs.append(math.nan if epoch is None else epoch)
    if _counted([step for step, _ in rows], epochs):
        rows = [(number, values) for number, (_, values) in enumerate(rows, start=1)]
    try:
        return of_rows(path.stem, [(int(step), values) for step, values in rows], given, {})
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _counted(steps: list[float], epochs: list[float]) -> bool:
    """Whether rows have to be counted instead: fractions, or batches of one epoch after the other."""
    if any(step != int(step) for step in steps):
        return True
    back = [i for i in range(1, len(steps)) if steps[i] < steps[i - 1]]
    return bool(back) and all(epochs[i] > epochs[i - 1] for i in back)


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell.strip() else None
    except ValueError:
        return None
