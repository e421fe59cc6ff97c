"""Clippy beside its published reference implementation (tensorflow-recommenders' ClippyAdagrad).

The reference runs on Keras 2, so it runs in a process of its own with tf-keras; both sides get the same weights and the
same stream of gradients, with spikes in it. Printed are the largest differences of the weights and of the clipping
factors over all steps, per setting; and the reference's own defaults, which differ from the paper's, for comparison.

    pip install --no-deps --target DIR tf-keras==2.21.0 tensorflow-recommenders==0.7.7 absl-py
    python benchmarks/parity.py --reference DIR [--steps 200]

Without --reference (or LOSSGUARD_REFERENCE) it says so and ends.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = [(64, 32), (32,), (32, 1)]
RATE = 0.1
SETTINGS: dict[str, dict[str, Any]] = {
    "paper (0.5, 1e-2), Algorithm 1's order": {
        "variable_relative_threshold": 0.5,
        "absolute_threshold": 1e-2,
        "use_standard_accumulator_update": True,
    },
    "tight (0.1, 1e-3), Algorithm 1's order": {
        "variable_relative_threshold": 0.1,
        "absolute_threshold": 1e-3,
        "use_standard_accumulator_update": True,
    },
    "reference's defaults (0.1, 1e-7, delayed order)": {},
}

REFERENCE = """
import json, sys
import numpy as np, tensorflow as tf
from tensorflow_recommenders.experimental.optimizers.clippy_adagrad import ClippyAdagrad
data = np.load(sys.argv[1]); steps, options = int(sys.argv[2]), json.loads(sys.argv[3])
weights = [tf.Variable(data[f"w{i}"]) for i in range(3)]
optimizer = ClippyAdagrad(learning_rate=float(sys.argv[5]), export_clipping_factors=True, **options)
out, factors = [], []
for step in range(steps):
    optimizer.apply_gradients([(tf.constant(data[f"g{step}_{i}"]), w) for i, w in enumerate(weights)])
    out.append(np.concatenate([w.numpy().ravel() for w in weights]))
    factors.append([float(f) for f in optimizer.clipping_factors])
np.savez(sys.argv[4], weights=np.array(out), factors=np.array(factors))
"""


def stream(steps: int) -> dict[str, np.ndarray]:
    """Starting weights (the second layer at zero, as biases are) and gradients with a spike every 25 steps."""
    random = np.random.default_rng(0)
    data = {f"w{i}": (random.normal(size=shape) * (0.0 if i == 1 else 0.1)) for i, shape in enumerate(SHAPES)}
    for step in range(steps):
        scale = 100.0 if step % 25 == 20 else 0.1
        data |= {f"g{step}_{i}": random.normal(size=shape) * scale for i, shape in enumerate(SHAPES)}
    return {name: value.astype("float32") for name, value in data.items()}


def ours(data: dict[str, np.ndarray], steps: int, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from lossguard.keras import Clippy
    from lossguard.keras.optimizer import Hook
    from lossguard.keras.ring import frames_of
    from lossguard.wire import stats

    treatment = Clippy(
        lambda_rel=options.get("variable_relative_threshold", 0.1),
        lambda_abs=options.get("absolute_threshold", 1e-7),
        exclude=(),
    )
    optimizer = keras.optimizers.Adagrad(RATE)
    hook = Hook(optimizer, [treatment], lambda eta: {"learning_rate": eta}, rows=2 * steps, full_every=16)
    variables = [keras.Variable(data[f"w{i}"], name=f"w{i}") for i in range(3)]
    weights = []
    for step in range(steps):
        optimizer.apply([keras.ops.convert_to_tensor(data[f"g{step}_{i}"]) for i in range(3)], variables)
        weights.append(np.concatenate([variable.numpy().ravel() for variable in variables]))
    assert hook.ring is not None
    frames = frames_of(hook.ring.layout, 1, np.asarray(hook.ring.snapshot(1, steps)), np.full(steps, np.nan))
    return np.array(weights), frames.stats[:, :, frames.schema.stats.index(stats.CLIPPING_FACTOR)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, default=os.environ.get("LOSSGUARD_REFERENCE"))
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    if chosen.reference is None:
        print("parity: no reference implementation given; see the head of this file for how to get it")
        return

    data = stream(chosen.steps)
    print(f"Clippy on Adagrad({RATE}), {chosen.steps} steps, ours against tensorflow-recommenders' ClippyAdagrad")
    print(f"{'':50} {'max |dw|':>10} {'max |dsigma|':>13} {'sigma ours':>11} {'theirs':>8}  (medians)")
    for name, options in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            given, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
            np.savez(given, **data)
            environment = {
                **os.environ,
                "PYTHONPATH": str(chosen.reference),
                "TF_USE_LEGACY_KERAS": "1",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            }
            arguments = [str(given), str(chosen.steps), json.dumps(options), str(result), str(RATE)]
            done = subprocess.run(
                [sys.executable, "-c", REFERENCE, *arguments], env=environment, capture_output=True, text=True
            )
            if done.returncode != 0:
                sys.exit(f"the reference failed:\n{done.stderr[-2000:]}")
            theirs = np.load(result)
            weights, factors = ours(data, chosen.steps, options)
        apart = np.abs(weights - theirs["weights"]).max()
        sigma = np.abs(factors - theirs["factors"]).max()
        medians = np.median(factors), np.median(theirs["factors"])
        print(f"{name:50} {apart:10.1e} {sigma:13.1e} {medians[0]:11.3g} {medians[1]:8.3g}")


if __name__ == "__main__":
    main()
