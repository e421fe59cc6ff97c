"""The published rules for training divergence, re-implemented from their descriptions, with their defaults.

Each rule takes a run's total loss, its global gradient norm and its layers' stats, and returns the frames at which it
fires. No peer's code is copied; what is restated here, with its source, is in the comments. Python loops are fine:
these are baselines for quality, not for speed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Series:
    """What the rules look at: loss [T], global gradient norm [T] or None, layer stats by name [T, L]."""

    loss: np.ndarray
    gradient: np.ndarray | None
    stats: dict[str, np.ndarray]


Rule = Callable[[Series], list[int]]


def kill_loss_spike(run: Series) -> list[int]:
    """llm-foundry KillLossSpike: five frames in a row at twice the mean of the last 100; outliers enter the window."""
    fired, count = [], 0
    for t in range(100, len(run.loss)):
        mean = run.loss[t - 100 : t].mean()
        count = count + 1 if run.loss[t] >= 2.0 * mean else 0
        if count > 4:
            fired.append(t)
    return fired


def lightning(run: Series) -> list[int]:
    """Lightning SpikeDetection: not finite, or rising and three times the mean of the last 10 accepted values."""
    fired: list[int] = []
    window: list[float] = []
    for t, value in enumerate(run.loss):
        mean = float(np.mean(window)) if window else np.nan
        rising = t > 0 and value - run.loss[t - 1] > 0
        if not np.isfinite(value) or (len(window) >= 1 and rising and abs(value - mean) >= 2.0 * abs(mean)):
            fired.append(t)
        else:
            window = [*window[-9:], float(value)]
    return fired


def _sigmas(values: np.ndarray, least: int, ddof: int) -> list[int]:
    fired = []
    for t in range(least, len(values)):
        window = values[max(0, t - 128) : t]
        mean, std = window.mean(), window.std(ddof=ddof)
        if std >= 1e-10 and values[t] > mean + 6 * std:
            fired.append(t)
    return fired


def olmo(run: Series) -> list[int]:
    """OLMo StabilityMonitor: loss or gradient norm 6 sigma above its last 128 values, of which there must be 128."""
    fired = set(_sigmas(run.loss, 128, 0))
    if run.gradient is not None:
        fired |= set(_sigmas(run.gradient, 128, 0))
    return sorted(fired)


def skip_step(run: Series) -> list[int]:
    """OLMo SkipStep, Levanter: the same from 64 values on; a NaN never passes the test, so it fires too."""
    fired = set(_sigmas(run.loss, 64, 1)) | set(np.flatnonzero(~np.isfinite(run.loss)).tolist())
    if run.gradient is not None:
        fired |= set(_sigmas(run.gradient, 64, 1))
    return sorted(fired)


def megatron(run: Series) -> list[int]:
    """Megatron-LM's spiky loss: ten times the largest of the first 100 finite values; NaN by its separate check."""
    finite = np.flatnonzero(np.isfinite(run.loss))
    fired = set(np.flatnonzero(~np.isfinite(run.loss)).tolist())
    if len(finite) > 100:
        largest = np.abs(run.loss[finite[:100]]).max()
        fired |= {int(t) for t in finite[100:] if abs(run.loss[t]) >= 10 * largest}
    return sorted(fired)


def metaseq(run: Series) -> list[int]:
    """metaseq: the loss over its exponential mean (alpha 0.2, spikes left out) above 1.5."""
    fired, mean = [], float(run.loss[0])
    for t in range(1, len(run.loss)):
        if run.loss[t] / mean > 1.5:
            fired.append(t)
        else:
            mean += 0.2 * (float(run.loss[t]) - mean)
    return fired


def wandb(run: Series) -> list[int]:
    """W&B's z-score automation: 3 sigma above a window of 30."""
    fired = []
    for t in range(30, len(run.loss)):
        window = run.loss[t - 30 : t]
        if run.loss[t] > window.mean() + 3 * window.std():
            fired.append(t)
    return fired


def zclip(run: Series) -> list[int]:
    """ZClip's trigger: the gradient norm 2.5 sigma above exponential moments (0.97, 25 frames to begin with)."""
    if run.gradient is None or len(run.gradient) <= 25:
        return []
    g = run.gradient
    mean, variance = float(g[:25].mean()), float(g[:25].var())
    fired = []
    for t in range(25, len(g)):
        std = variance**0.5
        value = float(g[t])
        z = (value - mean) / (std + 1e-6)
        if z > 2.5:
            fired.append(t)
            value = mean + 2.5 * std / (z / 2.5)
        variance = 0.97 * variance + 0.03 * (value - mean) ** 2
        mean = 0.97 * mean + 0.03 * value
    return fired


def loss_not_decreasing(run: Series) -> list[int]:
    """SageMaker Debugger LossNotDecreasing: every 10 frames, 5 % above the value 10 frames before."""
    return [t for t in range(10, len(run.loss), 10) if run.loss[t] > 1.05 * run.loss[t - 10]]


def exploding_tensor(run: Series) -> list[int]:
    """SageMaker Debugger ExplodingTensor: any NaN or Inf, here in the loss or a layer's stats."""
    bad = ~np.isfinite(run.loss)
    for name, values in run.stats.items():
        bad |= (values > 0).any(axis=1) if name == "nonfinite_count" else ~np.isfinite(values).all(axis=1)
    return np.flatnonzero(bad).tolist()


def vanishing_gradient(run: Series) -> list[int]:
    """SageMaker Debugger VanishingGradient: mean |g| below 1e-7, here ||g|| (an upper bound of it) of any layer."""
    g = run.stats.get("gradient_norm")
    return [] if g is None else np.flatnonzero((g < 1e-7).any(axis=1)).tolist()


def weight_update_ratio(run: Series) -> list[int]:
    """SageMaker Debugger WeightUpdateRatio: update over weight above 10 or below 1e-8."""
    if "update_norm" not in run.stats or "weight_norm" not in run.stats:
        return []
    ratio = run.stats["update_norm"] / (run.stats["weight_norm"] + 1e-9)
    return np.flatnonzero(((ratio > 10.0) | (ratio < 1e-8)).any(axis=1)).tolist()


def autotrainer(run: Series) -> list[int]:
    """AutoTrainer: first over last layer's gradient above 70, or below 1e-3 with the first below 1e-4; dying ReLU at
    0.7; loss 1000 and above, or not finite.
    """
    fired = ~np.isfinite(run.loss) | (run.loss >= 1e3)
    g = run.stats.get("gradient_norm")
    if g is not None and g.shape[1] > 1:
        ratio = g[:, 0] / np.maximum(g[:, -1], 1e-30)
        fired |= (ratio > 70) | ((ratio < 1e-3) & (g[:, 0] < 1e-4))
    dead = run.stats.get("dead_fraction")
    if dead is not None and dead.size:
        fired |= np.nanmax(dead, axis=1) >= 0.7
    return np.flatnonzero(fired).tolist()


RULES: dict[str, Rule] = {
    "KillLossSpike": kill_loss_spike,
    "Lightning SpikeDetection": lightning,
    "OLMo 6 sigma": olmo,
    "SkipStep (OLMo, Levanter)": skip_step,
    "Megatron spiky loss": megatron,
    "metaseq 1.5": metaseq,
    "W&B z-score 3/30": wandb,
    "ZClip trigger": zclip,
    "SM LossNotDecreasing 5 %": loss_not_decreasing,
    "SM ExplodingTensor": exploding_tensor,
    "SM VanishingGradient": vanishing_gradient,
    "SM WeightUpdateRatio": weight_update_ratio,
    "AutoTrainer": autotrainer,
}
