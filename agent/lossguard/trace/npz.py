"""The trace format: one compressed NumPy archive per run, read and written.

Arrays: `step` int64 [T]; `scalar_names` [S]; `scalars` float64 [T, S]; `layer_names` [L]; `stat_names` [K]; `stats`
float32 [T, L, K]; `meta`, a JSON string. Optional: `scalars_present` bool [T, S] and `stats_present` bool [T, K], for
values that were not measured (without them everything was), and `time` float64 [T]. Nothing is unpickled. `meta` may
hold `name` and `tasks`: a list of {"name", "kind", "label_mean"} or a mapping from name to kind; a label mean that
stands there is replayed as the scalar `label_mean/<task>`. A step that goes back begins another attempt.

An archive without `scalars` is read as a bare curve: `step`, and beside it arrays of the same length, each a scalar.
"""

import itertools
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lossguard.trace.trace import Trace, TraceError, renamed
from lossguard.wire.frame import Frames, Schema

_NEEDED = ("step", "scalar_names", "scalars")


def read(path: Path, given: Mapping[str, str] | None = None) -> Trace:
    """Read a trace.

    Args:
        path: the archive.
        given: scalar name to the name that it has in the file.

    Raises:
        TraceError: not such an archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, OSError) as error:
        raise TraceError(f"{path}: not a NumPy archive that can be read ({error})") from None
    if "scalars" not in arrays:
        arrays = _bare(arrays)
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        raise TraceError(f"{path}: no array {', '.join(missing)}; a trace holds {', '.join(_NEEDED)} at least")
    try:
        meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
        meta = meta if isinstance(meta, dict) else {}
        tasks, labels = _tasks(meta)
        scalars = np.asarray(arrays["scalars"], np.float64)
        names = [str(name) for name in arrays["scalar_names"]]
        known = renamed(names, given or {})
        names = [known.get(name, name) for name in names]
        present = np.asarray(arrays.get("scalars_present", np.ones(scalars.shape)), np.bool_)
        for task, mean in labels.items():
            if f"label_mean/{task}" not in names:
                names.append(f"label_mean/{task}")
                scalars = np.concatenate([scalars, np.full((len(scalars), 1), mean)], axis=1)
                present = np.concatenate([present, np.ones((len(present), 1), np.bool_)], axis=1)
        schema = Schema(
            tuple(names),
            tuple(str(name) for name in arrays.get("layer_names", ())),
            tuple(str(name) for name in arrays.get("stat_names", ())),
        )
        shape = (len(scalars), len(schema.layers), len(schema.stats))
        steps = np.asarray(arrays["step"], np.int64).reshape(-1)
        if len(steps) != len(scalars):
            raise ValueError(f"{len(steps)} steps, but {len(scalars)} rows of scalars")
        stats = np.asarray(arrays.get("stats", np.zeros(shape)), np.float32)
        times = np.asarray(arrays["time"], np.float64) if "time" in arrays else np.full(len(steps), np.nan)
        measured = np.asarray(arrays.get("stats_present", np.ones(shape[::2])), np.bool_)
        edges = [0, *(np.flatnonzero(steps[1:] < steps[:-1]) + 1).tolist(), len(steps)]
        attempts = tuple(
            Frames.of(
                schema, steps[a:b], scalars[a:b], stats[a:b],
                times=times[a:b], scalars_present=present[a:b], stats_present=measured[a:b],
            )
            for a, b in itertools.pairwise(edges)
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise TraceError(f"{path}: {error}") from None
    return Trace(str(meta.get("name") or path.stem), attempts, tasks, meta)


def _bare(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A bare curve's arrays as a trace's."""
    steps = arrays.get("step", np.empty(0))
    found = {
        name: array
        for name, array in arrays.items()
        if name != "step" and array.ndim == 1 and len(array) == len(steps) and array.dtype.kind in "fiub"
    }
    if steps.ndim != 1 or not found:
        return dict(arrays)
    return {"step": steps, "scalar_names": list(found), "scalars": np.stack(list(found.values()), axis=1)}


def _tasks(meta: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, float]]:
    """The kinds and the label means that a trace names."""
    found = meta.get("tasks") or {}
    if isinstance(found, Mapping):
        return {str(name): str(kind) for name, kind in found.items()}, {}
    kinds = {str(task["name"]): str(task["kind"]) for task in found if isinstance(task, Mapping) and "kind" in task}
    means = {
        str(task["name"]): float(task["label_mean"])
        for task in found
        if isinstance(task, Mapping) and task.get("kind") == "binary" and task.get("label_mean") is not None
    }
    return kinds, means


def write(path: Path, frames: Frames, meta: Mapping[str, Any] | None = None) -> None:
    """Write a trace; `read` gives the same frames back."""
    np.savez_compressed(
        path,
        step=frames.steps,
        time=frames.times,
        scalar_names=np.array(frames.schema.scalars, np.str_),
        scalars=frames.scalars,
        scalars_present=frames.scalars_present,
        layer_names=np.array(frames.schema.layers, np.str_),
        stat_names=np.array(frames.schema.stats, np.str_),
        stats=frames.stats,
        stats_present=frames.stats_present,
        meta=np.array(json.dumps(dict(meta or {}))),
    )
