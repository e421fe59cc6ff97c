"""Lossguard, the part that runs beside a trainer.

Importing this package loads neither Keras nor TensorFlow (those live in `lossguard.keras`) nor anything else:
`lossguard.Run` is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossguard.run import Run

__version__ = "0.1.0"
__all__ = ["Run", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Run":
        from lossguard.run import Run

        return Run
    raise AttributeError(f"module 'lossguard' has no attribute {name!r}")
