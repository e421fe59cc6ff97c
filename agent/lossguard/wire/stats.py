"""The stats of one layer at one step: the only list of their names.

g is the gradient that reaches the update, u = eta * r the update that the inner optimizer would apply, w the weight
before it (arXiv 2302.09178, section 4). Chunks and traces carry their own stat names and readers take any; these are
the ones our agent measures.
"""

WEIGHT_NORM = "weight_norm"
GRADIENT_NORM = "gradient_norm"
UPDATE_NORM = "update_norm"
RELATIVE_UPDATE_MAX = "relative_update_max"
CLIPPY_RATIO = "clippy_ratio"
CLIPPING_FACTOR = "clipping_factor"
GRADIENT_ZERO_FRACTION = "gradient_zero_fraction"
NONFINITE_COUNT = "nonfinite_count"
GRADIENT_MAX = "gradient_max"
WEIGHT_NORM_AFTER = "weight_norm_after"

MEANING = {
    WEIGHT_NORM: "‖w‖₂, before the update",
    GRADIENT_NORM: "‖g‖₂",
    UPDATE_NORM: "‖u‖₂, before the clipping factor",
    RELATIVE_UPDATE_MAX: "max |u|/|w| over w ≠ 0 (the paper's equation 4 times eta)",
    CLIPPY_RATIO: "max |u| / (lambda_rel |w| + lambda_abs); Clippy's factor is min(1, 1/ratio)",
    CLIPPING_FACTOR: "sigma as applied, 1 without a treatment",
    GRADIENT_ZERO_FRACTION: "share of g that is exactly 0",
    NONFINITE_COUNT: "NaN or Inf entries in g",
    GRADIENT_MAX: "max |g|",
    WEIGHT_NORM_AFTER: "‖w‖₂, after the update, at steps whose weights are likely to be exported",
}

STAT_NAMES = tuple(name for name in MEANING if name != WEIGHT_NORM_AFTER)
"""Those that are measured within a step. `WEIGHT_NORM_AFTER` is measured behind it, where training ends or is saved."""
