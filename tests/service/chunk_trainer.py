"""A trainer that exists as chunks: seeded frames of a run that is healthy, or diverges, or dies in silence."""

from collections.abc import Sequence

import numpy as np

from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkId, Event, encode
from lossguard.wire.frame import Frames, Schema

LAYERS = ("embedding", "shared/dense/kernel", "shared/dense/bias", "heads/click/kernel")
STATS = ("gradient_norm", "clippy_ratio", "nonfinite_count")
SCHEMA = Schema(scalars=("loss", "loss/click", "label_mean/click", "learning_rate"), layers=LAYERS, stats=STATS)
FIRST, SECOND = "a" * 32, "b" * 32


def frames(
    first: int, last: int, *, diverges_at: int | None = None, nan_at: int | None = None, seed: int = 0
) -> Frames:
    """Frames of steps [first, last]; the value at a step depends on the seed and the step alone."""
    steps = np.arange(first, last + 1)
    noise = np.array([np.random.default_rng([seed, step]).normal(size=2) for step in steps]).reshape(-1, 2)
    click = 0.5 + 0.01 * noise[:, 0]
    if diverges_at is not None:
        click = np.where(steps >= diverges_at, 5.0 + 0.1 * noise[:, 1], click)
    if nan_at is not None:
        click = np.where(steps >= nan_at, np.nan, click)
    scalars = np.stack([click, click, np.full(len(steps), 0.3), np.full(len(steps), 0.1)], axis=1)
    stats = np.zeros((len(steps), len(LAYERS), len(STATS)), np.float32)
    stats[:, :, 0] = 1.0 + np.arange(len(LAYERS)) + 0.1 * noise[:, :1]
    stats[:, :, 1] = 0.1 * (1 + np.arange(len(LAYERS)))
    return Frames.of(SCHEMA, steps, scalars, stats, times=1_700_000_000.0 + 0.1 * steps)


def chunks(
    block: Frames,
    *,
    project: str = "video",
    run: str = "ranker",
    attempt: str = FIRST,
    start_step: int = 0,
    size: int = 32,
    stop: str | None = None,
    checkpoints: Sequence[Checkpoint] = (),
) -> list[bytes]:
    """The attempt's chunks, `size` frames each, with its events where they belong."""
    result = []
    starts = list(range(0, len(block), size)) or [0]
    for index, start in enumerate(starts):
        part = block[start : start + size]
        events: list[Event] = []
        if index == 0:
            config = {"tasks": {"click": "binary"}, "optimizer": "adagrad"}
            events.append(AttemptStart(step=start_step, time=1_700_000_000.0, config=config))
        if len(part):
            events += [one for one in checkpoints if part.steps[0] <= one.step <= part.steps[-1]]
        if stop is not None and start == starts[-1]:
            events.append(AttemptStop(step=int(block.steps[-1]), time=1_700_000_900.0, reason=stop))
        identity = ChunkId(project, run, attempt, index)
        result.append(encode(Chunk(identity, part, events=tuple(events)), mantissa_bits=23))
    return result
