"""What kind of model a path holds, if any.

Guarantees. Looks at names only; what the tensors hold is `scan`'s question. A path that holds no model is refused with
a sentence that says what it holds and what to do.
"""

from pathlib import Path
from typing import Final, Literal

from lossguard.gate.errors import NotAModel

Kind = Literal["savedmodel", "keras", "weights", "orbax"]

SAVED_MODEL: Final = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
"""What TensorFlow takes a folder for a SavedModel by."""
_OTHERS: Final = (".h5", ".hdf5", ".npz", ".safetensors", ".ckpt", ".index", ".tflite", ".onnx", ".pt", ".pth", ".pb")
_WHAT = "a SavedModel folder (model.export), a .keras file, a .weights.h5 file or an Orbax checkpoint"


def model_kind(artifact: str | Path) -> Kind:
    """The kind of model at a path.

    Raises:
        NotAModel: there is none; the sentence says what to do.
    """
    path = Path(artifact)
    if not path.exists():
        raise NotAModel(f"{path} does not exist: name what was exported with --artifact, {_WHAT}")
    if path.is_dir():
        return _folder(path)
    if path.stat().st_size == 0:
        raise NotAModel(f"{path} is empty: export the model again")
    if path.name.endswith(".weights.h5"):
        return "weights"
    if path.suffix == ".keras":
        return "keras"
    if path.name in SAVED_MODEL:
        raise NotAModel(f"{path} is a part of a SavedModel: name its folder, {path.parent}")
    raise NotAModel(f"{path} is not a model that the gate knows: export {_WHAT}")


def _folder(path: Path) -> Kind:
    names = sorted(entry.name for entry in path.iterdir())
    graphs = [name for name in SAVED_MODEL if name in names]
    if graphs:
        if (path / graphs[0]).stat().st_size == 0:
            raise NotAModel(f"{path / graphs[0]} is empty: the export did not finish; export the model again")
        index = path / "variables" / "variables.index"
        if (path / "variables").is_dir() and not index.is_file():
            raise NotAModel(f"{index} is missing: the export did not finish; export the model again")
        return "savedmodel"
    if ".orbax-checkpoint-tmp" in path.name:
        raise NotAModel(f"{path} is a checkpoint that Orbax did not finish: name one that it did, or save it again")
    if _is_orbax(path):
        return "orbax"
    models = [name for name in names if name.endswith((".keras", ".weights.h5"))]
    if len(models) == 1:
        others = [name for name in names if name not in models and name.lower().endswith(_OTHERS)]
        if others:
            raise NotAModel(
                f"{path} holds {models[0]} and {others[0]}, and it is not known which of them will be served: keep one "
                "model in the folder, or name the file"
            )
        return "keras" if models[0].endswith(".keras") else "weights"
    steps = [name for name in names if name.isdigit() and (path / name).is_dir() and _is_orbax(path / name)]
    if steps:
        newest = max(steps, key=int)
        raise NotAModel(f"{path} holds checkpoints of several steps: name one of them, {path / newest}")
    versions = [name for name in names if name.isdigit() and (path / name / "saved_model.pb").is_file()]
    if versions:
        raise NotAModel(f"{path} holds versions of a model, not a model: name one of them, {path / versions[-1]}")
    if "checkpoint" in names or any(name.endswith(".index") for name in names):
        raise NotAModel(
            f"{path} is a TensorFlow checkpoint, which cannot be served: export the model with "
            "model.export(folder), which makes a SavedModel"
        )
    held = f"it holds {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}" if names else "it is empty"
    raise NotAModel(f"{path} is not a model ({held}): export {_WHAT}")


def _is_orbax(path: Path) -> bool:
    """True for one step of Orbax, or one item of it; an Orbax of before 0.6 marks the items only."""
    marks = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
    return any((folder / mark).is_file() for mark in marks for folder in (path, path / "default"))
