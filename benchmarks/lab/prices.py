"""What a run costs, for the plan: measured on one core of the machine that the committed report names."""

from lab.config import BATCH, Config

STEP_SECONDS = {
    "wide": 0.0020,
    "wide&deep": 0.0027,
    "small": 0.0026,
    "small+dcn": 0.0055,
    "mmoe": 0.0060,
    "large": 0.0067,
    "large+dcn": 0.0101,
}
"""CPU seconds of a watched step of `BATCH` examples."""
COMPILE_SECONDS = {"small": 2.5, "wide": 2.0, "wide&deep": 2.5}
LONGEST_COMPILE_SECONDS = 3.5
EVALUATION_SECONDS = 0.03


def seconds(config: Config) -> float:
    """CPU seconds of one run, without its compilation."""
    # A larger batch is cheaper by the example: the embedding's update is one of the whole table.
    size = 0.35 + 0.65 * config.batch / BATCH
    probes = config.steps // config.sharpness_every if config.sharpness_every else 0
    step = STEP_SECONDS[config.bottom]
    return config.steps * step * size + config.evaluations * EVALUATION_SECONDS * 3 + probes * 40 * step


def compile_seconds(config: Config) -> float:
    """CPU seconds until its step is compiled."""
    return COMPILE_SECONDS.get(config.bottom, LONGEST_COMPILE_SECONDS)
