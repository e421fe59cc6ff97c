"""Small synthetic runs for the detectors' tests: what they look like is in the argument names."""

import dataclasses

import numpy as np

from lossguard.wire.frame import Frames, Schema

LAYERS = ("shared0/kernel", "shared1/kernel", "head_click/kernel", "head_play/kernel")
STATS = ("weight_norm", "gradient_norm", "update_norm", "clippy_ratio", "nonfinite_count")
SCALARS = ("loss", "learning_rate", "loss/click", "loss/play", "batch_auc/click", "label_mean/click")


def ranker(
    frames: int = 300, *, seed: int = 0, onset: int | None = None, recovers_after: int | None = None, nan_at: int = -1
) -> Frames:
    """A two-task ranker that trains well; from `onset` on it diverges, and stays so or recovers.

    A divergence: gradients leave first in shared1, losses jump a thousandfold within 5 frames and come back to the
    constant predictor, the AUC falls to chance and stays there.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(frames)
    click = 0.64 + 0.05 * np.exp(-t / 40) + 0.01 * rng.standard_normal(frames)
    play = 16 + 4 * np.exp(-t / 40) + 1.5 * rng.standard_normal(frames)
    auc = 0.5 + 0.17 * (1 - np.exp(-t / 30)) + 0.025 * rng.standard_normal(frames)
    stats = np.exp(0.1 * rng.standard_normal((frames, len(LAYERS), len(STATS)))).astype(np.float32)
    stats[:, :, STATS.index("nonfinite_count")] = 0
    if onset is not None:
        end = frames if recovers_after is None else min(frames, onset + recovers_after)
        hit = slice(onset, end)
        age = t[hit] - onset
        wave = np.exp(np.minimum(age, 5) * 1.4) * np.exp(-np.maximum(age - 5, 0) / 3.0)
        click[hit] = 0.686 + 3 * wave + 0.01 * rng.standard_normal(end - onset)
        if recovers_after is None:
            click[hit] = np.maximum(click[hit], 0.686 * 2 * np.exp(-age / 60))
        play[hit] = 20 + 20 * wave**2 + 1.5 * rng.standard_normal(end - onset)
        auc[hit] = 0.5 + 0.025 * rng.standard_normal(end - onset)
        stats[onset - 3 : end, 1, STATS.index("gradient_norm")] *= 50
        stats[onset:end, :, STATS.index("gradient_norm")] *= 100
    if nan_at >= 0:
        stats[nan_at, 0, STATS.index("nonfinite_count")] = 7
        stats[nan_at + 1 :, 0, STATS.index("weight_norm")] = np.nan
    columns = [click + play, np.full(frames, 0.1), click, play, auc, np.full(frames, 0.442)]
    return Frames.of(Schema(SCALARS, LAYERS, STATS), t + 1, np.stack(columns, 1), stats)


def rarely(frames: Frames, every: int = 16, phase: int = 0, always: tuple[str, ...] = ("gradient_norm",)) -> Frames:
    """The same run, most stats measured every so many steps only, as the agent does by default."""
    present = np.ones(frames.stats_present.shape, bool)
    for k, name in enumerate(frames.schema.stats):
        if name not in always:
            present[:, k] = np.arange(len(frames)) % every == phase
    stats = np.where(present[:, None], frames.stats, np.float32(np.nan))
    return dataclasses.replace(frames, stats=stats, stats_present=present)


def curve(values: np.ndarray) -> Frames:
    """A run that logged nothing but its loss."""
    return Frames.of(Schema(("loss",)), np.arange(1, len(values) + 1), np.asarray(values, float)[:, None])


def decay(frames: int = 400, *, seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """A loss that falls from 4 to 2 with noise."""
    rng = np.random.default_rng(seed)
    return 2 + 2 * np.exp(-np.arange(frames) / 60) + noise * rng.standard_normal(frames)
