"""`python -m lossguard.keras.canary EXPORT ROWS`: an exported model answers rows; `lossguard.gate.canary` runs it.

Guarantees. Prints one JSON line `{"rows", "nonfinite", "spread"}`: how many rows were asked, how many outputs were NaN
or Inf, and the smallest standard deviation over the rows of any output. Exit codes: 0 answered, 2 the rows are not
rows, 5 the model does not load or does not answer; the last line of standard error says why.

ROWS is an `.npz` with one array per input of the model, rows first, or the same as a JSON object of lists.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

BAD_ROWS, NO_ANSWER = 2, 5


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """The rows by input.

    Raises:
        ValueError: the file holds none.
    """
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            rows = {name: archive[name] for name in archive.files}
    else:
        document = json.loads(path.read_text("utf-8"))
        if not isinstance(document, dict):
            raise ValueError("write a JSON object with a list of values for each input")
        rows = {str(name): np.asarray(values) for name, values in document.items()}
    counts = {len(values) if values.ndim else 0 for values in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every input needs the same number of rows, at least one; got {sorted(counts)}")
    return rows


def answer(export: Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's outputs by name."""
    if export.is_dir() and (export / "saved_model.pb").is_file():
        return _savedmodel(export, rows)
    import keras

    if export.is_dir():
        export = next(path for path in sorted(export.iterdir()) if path.suffix == ".keras")
    if export.suffix != ".keras":
        raise ValueError(f"{export.name} holds weights without a model: export a SavedModel or a .keras file")
    outputs = keras.saving.load_model(export, compile=False).predict(
        rows if len(rows) > 1 else next(iter(rows.values())), verbose=0
    )
    return _named(outputs)


def _savedmodel(export: Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import tensorflow as tf

    model = tf.saved_model.load(str(export))
    signature = model.signatures.get("serving_default") or next(iter(model.signatures.values()), None)
    if signature is None:
        raise ValueError("the SavedModel has no signature to call")
    wanted = signature.structured_input_signature[1]
    if set(wanted) != set(rows) and len(wanted) == len(rows) == 1:
        rows = {next(iter(wanted)): next(iter(rows.values()))}
    missing = sorted(set(wanted) - set(rows))
    if missing:
        raise KeyError(
            f"the canary has no values for the input {missing[0]}; the inputs are {', '.join(sorted(wanted))}"
        )
    tensors = {name: tf.convert_to_tensor(rows[name], dtype=spec.dtype) for name, spec in wanted.items()}
    return _named({name: value.numpy() for name, value in signature(**tensors).items()})


def _named(outputs: Any, prefix: str = "output") -> dict[str, np.ndarray]:
    if isinstance(outputs, dict):
        return {str(name): np.asarray(value) for name, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return {f"{prefix}_{place}": np.asarray(value) for place, value in enumerate(outputs)}
    return {prefix: np.asarray(outputs)}


def main(arguments: list[str]) -> int:
    """Answer, print, and return the exit code."""
    try:
        rows = read_rows(Path(arguments[1]))
    except (OSError, ValueError, TypeError) as error:
        print(f"{arguments[1]}: {error}", file=sys.stderr)
        return BAD_ROWS
    try:
        outputs = answer(Path(arguments[0]), rows)
    except Exception as error:  # whatever the model does, the gate wants a sentence
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return NO_ANSWER
    floats = {name: values.astype(np.float64) for name, values in outputs.items() if values.dtype.kind in "fiub"}
    if not floats:
        print("ValueError: the model's outputs are no numbers", file=sys.stderr)
        return NO_ANSWER
    nonfinite = sum(int(np.count_nonzero(~np.isfinite(values))) for values in floats.values())
    with np.errstate(invalid="ignore"):
        spread = min(float(values.std(axis=0).max()) if values.size else 0.0 for values in floats.values())
    document = {"rows": len(next(iter(rows.values()))), "nonfinite": nonfinite, "spread": spread}
    print(json.dumps(document | {"spread": spread if np.isfinite(spread) else "NaN"}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
