"""Lossguard, the part that runs beside a trainer.

Importing this package loads neither Keras nor TensorFlow: those live in `lossguard.keras`.
"""

__version__ = "0.1.0"
