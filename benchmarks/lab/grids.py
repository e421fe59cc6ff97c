"""The treatments by name, where each is made, and the thresholds that are searched. Loads no Keras."""

from collections.abc import Mapping

Settings = tuple[tuple[str, float], ...]

MAKERS: Mapping[str, tuple[str, str]] = {
    "gc": ("lossguard.keras.treatments.clipping", "GradientClipping"),
    "agc": ("lossguard.keras.treatments.clipping", "AdaptiveGradientClipping"),
    "lamb": ("lossguard.keras.treatments.lamb", "LAMB"),
    "clippy": ("lossguard.keras.treatments.clippy", "Clippy"),
    "polyak": ("lossguard.keras.treatments.polyak", "PolyakCap"),
}
"""Module and class. A run's numbers depend on the code of its own treatment's module alone."""

METHODS: tuple[str, ...] = ("naive", "gc", "agc", "lamb", "clippy")
"""The paper's."""

GRIDS: Mapping[str, tuple[Settings, ...]] = {
    "naive": ((),),
    "gc": tuple((("threshold", value),) for value in (1e-1, 1e-2, 1e-3)),
    "agc": tuple((("threshold", value),) for value in (1e-1, 1e-2, 1e-3)),
    "lamb": tuple((("mu", value),) for value in (1e-1, 1e-2, 1e-3)),
    "clippy": tuple((("lambda_rel", 0.5), ("lambda_abs", value)) for value in (1e-1, 1e-2, 1e-3)),
}
"""The paper's values (GC 1e-1, AGC 1e-3, LAMB 1e-3, Clippy 0.5 and 1e-2) with their neighbours."""
CLIPPY: Settings = (("lambda_rel", 0.5), ("lambda_abs", 1e-2))
"""The paper's, and the product's default."""
