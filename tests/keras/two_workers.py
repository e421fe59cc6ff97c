"""A small training that is the same on one device and over two processes; run as a script, it is one of the two."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS, BATCH = 4, 8


def train(strategy: Any, watch: Any, before_close: Callable[[], None] = lambda: None) -> list[Any]:
    """Four steps of a loop of one's own; returns the weights."""
    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(7)
    random = np.random.default_rng(3)
    numbers = random.normal(size=(STEPS * BATCH, 3)).astype("float32")
    codes = random.integers(0, 5, (STEPS * BATCH, 2)).astype("int32")
    clicks = (random.random((STEPS * BATCH, 1)) < 0.4).astype("float32")
    with strategy.scope():
        inputs = keras.Input((3,)), keras.Input((2,), dtype="int32")
        looked_up = keras.layers.Flatten()(keras.layers.Embedding(5, 2, name="embedding")(inputs[1]))
        hidden = keras.layers.Dense(4, activation="tanh", name="hidden")(
            keras.layers.Concatenate()([inputs[0], looked_up])
        )
        model = keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden))
        optimizer = watch.wrap(keras.optimizers.Adagrad(0.1))
        optimizer.build(model.trainable_variables)
    data = strategy.experimental_distribute_dataset(
        tf.data.Dataset.from_tensor_slices((numbers, codes, clicks)).batch(BATCH)
    )

    def one(numbers: Any, codes: Any, clicks: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model([numbers, codes], training=True)
            loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(clicks, logits)) / BATCH
        watch.observe(loss, {"click": clicks}, {"click": logits})
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    @tf.function(autograph=False)
    def step(batch: Any) -> Any:
        return strategy.reduce("SUM", strategy.run(one, args=batch), axis=None)

    with watch:
        for batch in data:
            step(batch)
            watch.after_step()
        watch.flush()
        before_close()
    return list(model.get_weights())


def main(rank: int, ports: list[str], journal: str) -> None:
    """Train as one of two workers and print what the other side cannot see."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    from lossguard import worker
    from lossguard.journal.heartbeat import heartbeats
    from lossguard.keras import Clippy, Watch
    from lossguard.recorder import Recorder

    worker.BEAT_SECONDS = 0.02
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    said: dict[str, Any] = {"replicas": strategy.num_replicas_in_sync}

    def recorder(*args: Any, **options: Any) -> Recorder:
        return Recorder(*args, mantissa_bits=23, **options)

    def refusal(act: Callable[[], Any]) -> str:
        try:
            act()
        except ValueError as error:
            return str(error)
        return "not refused"

    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        stopping = Watch("ads", "two", journal=journal, on_full_divergence="stop")
        said["fit"] = refusal(lambda: Watch("ads", "two", journal=journal).attach(model))
        said["stop"] = refusal(lambda: stopping.wrap(keras.optimizers.SGD(0.1)))

    def hear() -> None:
        while rank and [beat.last_step for beat in heartbeats(Path(journal) / "ads" / "two")] != [STEPS]:
            pass
        said["alive"] = [beat.worker for beat in heartbeats(Path(journal) / "ads" / "two") if beat.alive]

    watch = Watch(
        "ads",
        "two",
        journal=journal,
        tasks={"click": "binary"},
        logits=["click"],
        treatment=Clippy(lambda_abs=1e-3),
        full_every=1,
        fetch_seconds=3600.0,  # or the clock would say which steps have the norms behind them
        open_recorder=recorder,
    )
    weights = train(strategy, watch, hear)
    said["weights"] = [weight.tolist() for weight in weights]
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:4], sys.argv[4])
