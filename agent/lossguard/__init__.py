"""Lossguard, the part that runs beside a trainer.

Importing this package loads neither Keras nor TensorFlow nor anything else: `lossguard.Run`, and `lossguard.keras` with
Keras, are loaded when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossguard.run import Run

__version__ = "0.1.0"
__all__ = ["Run", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Run":
        from lossguard.run import Run

        return Run
    if name == "keras":
        return importlib.import_module("lossguard.keras")
    raise AttributeError(f"module 'lossguard' has no attribute {name!r}")
