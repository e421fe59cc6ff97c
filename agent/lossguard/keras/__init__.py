"""Lossguard for Keras 3: watch every update of a model, and treat the ones that would hurt.

    watch = lossguard.keras.Watch("ads", "ranker-7", treatment=lossguard.keras.Clippy())
    model.compile(optimizer=watch.wrap(keras.optimizers.Adam(1e-3)), loss=...)
    model.fit(..., callbacks=[watch])

The only room that knows Keras. Watching alone leaves weights and optimizer state bit-identical.
"""

from lossguard.keras.reaction import Rollback, TrainingStopped
from lossguard.keras.sharpness import Sharpness
from lossguard.keras.treatments.clipping import AdaptiveGradientClipping, GradientClipping
from lossguard.keras.treatments.clippy import Clippy
from lossguard.keras.treatments.lamb import LAMB
from lossguard.keras.treatments.polyak import PolyakCap
from lossguard.keras.treatments.skip import SkipNonFinite
from lossguard.keras.watch import Watch

__all__ = [
    "LAMB",
    "AdaptiveGradientClipping",
    "Clippy",
    "GradientClipping",
    "PolyakCap",
    "Rollback",
    "Sharpness",
    "SkipNonFinite",
    "TrainingStopped",
    "Watch",
]
