"""Which rows each batch has, and the learning rate of each step: all that the seed decides besides the weights."""

import numpy as np
from numpy.typing import NDArray

from lab.config import Config
from lossguard.demo import batches
from lossguard.demo.features import Examples


def rows(config: Config, examples: Examples) -> NDArray[np.int32]:
    """int32 [steps, batch]; no row of the judged day is among them."""
    training, needed = examples.training, config.steps * config.batch
    seed = config.seed if config.batch_seed is None else config.batch_seed
    if config.order == "window":
        found = batches.indices(examples, config.steps, seed, batch=config.batch, window_days=config.window_days)
    elif config.order == "shuffled":
        draw = np.random.default_rng([seed, 0x5A0FF1E])
        epochs = -(-needed // training)
        found = np.concatenate([draw.permutation(training) for _ in range(epochs)])[:needed]
    elif config.order == "dated":
        found = np.arange(needed) % training
    else:
        if needed > training:
            raise ValueError(f"steps: {config.steps} batches of {config.batch} are more than the {training} rows")
        found = np.arange(needed)
    return found.reshape(config.steps, config.batch).astype(np.int32)


def rates(config: Config) -> NDArray[np.float32]:
    """float32 [steps]."""
    step = np.arange(1, config.steps + 1)
    warm = np.minimum(step / config.warm_up, 1.0) if config.warm_up else np.ones(config.steps)
    return (config.learning_rate * warm * config.decay_to ** (step / config.steps)).astype(np.float32)
