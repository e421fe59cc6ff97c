"""Which reader for which file: by its name's ending, and where that says nothing, by its first bytes."""

from collections.abc import Mapping
from pathlib import Path

from lossguard.trace import npz, table, tfevents, trainer_state
from lossguard.trace.trace import Trace, TraceError


def read(path: Path, scalars: Mapping[str, str] | None = None) -> Trace:
    """Read a saved run.

    Args:
        path: a trace (.npz), a CSV file, a trainer_state.json or a TensorBoard event file.
        scalars: scalar name to the column or tag that holds it, where the usual names do not find it.

    Raises:
        TraceError: no such file, or none that a reader understands.
    """
    given = dict(scalars or {})
    if path.is_dir():
        raise TraceError(f"{path}: a folder; name the files in it")
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    name = path.name.lower()
    if name.endswith(".npz"):
        return npz.read(path, given)
    if name.endswith(".json"):
        return trainer_state.read(path, given)
    if "tfevents" in name:
        return tfevents.read(path, given)
    if name.endswith((".csv", ".tsv", ".txt")):
        return table.read(path, given)
    with path.open("rb") as file:
        head = file.read(12)
    if head.startswith(b"PK"):
        return npz.read(path, given)
    if head.lstrip().startswith(b"{"):
        return trainer_state.read(path, given)
    raise TraceError(f"{path}: not a trace (.npz), CSV, trainer_state.json or TensorBoard event file")
