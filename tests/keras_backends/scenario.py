"""`KERAS_BACKEND=... python scenario.py OUT`: trains small models on one backend and writes what the frames said.

The same weights, data and settings on every backend. OUT becomes a JSON object, a key for each scenario:
{"steps", "ended", "drops", "scalars": {name: [T]}, "stats": {layer: {stat: [T]}}, "present": [T] (measured in full),
"weights": [...], "slots": [...]} or what else a scenario tells.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import lossguard.guard
from lossguard.keras import (
    LAMB,
    AdaptiveGradientClipping,
    Clippy,
    GradientClipping,
    PolyakCap,
    Rollback,
    Sharpness,
    SkipNonFinite,
    TrainingStopped,
    Watch,
)

BACKEND = keras.backend.backend()
LOSSES: dict[str, Any] = {"click": keras.losses.BinaryCrossentropy(from_logits=True), "play": "mse"}


def raised(entry: str, error: Exception) -> None:
    raise error


class Sink:
    """A recorder that keeps what it gets."""

    def __init__(self, *places: Any, **options: Any) -> None:
        self.config = options["config"]
        self.blocks: list[Any] = []
        self.drops: dict[str, int] = {}
        self.ended = ""

    def record(self, frames: Any) -> bool:
        self.blocks.append(frames)
        return True

    def event(self, event: Any) -> bool:
        return True

    def drop(self, reason: str, count: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + count

    def close(self, reason: str = "finished", timeout_seconds: float = 30.0) -> None:
        self.ended = reason

    def told(self) -> dict[str, Any]:
        if not self.blocks:
            return {"steps": [], "ended": self.ended, "drops": self.drops}
        schema = self.blocks[-1].schema
        blocks = [block for block in self.blocks if block.schema.layers == schema.layers]
        scalars = np.concatenate([block.scalars for block in blocks])
        stats = np.concatenate([block.stats for block in blocks])
        return {
            "steps": [int(step) for block in blocks for step in block.steps],
            "ended": self.ended,
            "drops": self.drops,
            "full": np.concatenate([block.stats_present.min(1) for block in blocks]).tolist(),
            "scalars": {
                name: scalars[:, place].tolist()
                for place, name in enumerate(schema.scalars)
                if not name.startswith("agent_")
            },
            "stats": {
                layer: {stat: stats[:, row, column].tolist() for column, stat in enumerate(schema.stats)}
                for row, layer in enumerate(schema.layers)
            },
        }


def model_of_two_tasks() -> keras.Model:
    numbers, codes = keras.Input((5,), name="numbers"), keras.Input((3,), dtype="int32", name="codes")
    looked_up = keras.layers.Flatten()(keras.layers.Embedding(11, 2, name="embedding")(codes))
    shared = keras.layers.Dense(6, activation="tanh", name="shared")(keras.layers.Concatenate()([numbers, looked_up]))
    heads = {name: keras.layers.Dense(1, name=f"head_{name}")(shared) for name in ("click", "play")}
    model = keras.Model({"numbers": numbers, "codes": codes}, heads)
    random = np.random.default_rng(7)
    # The backends' own random numbers differ.
    model.set_weights([random.normal(size=weight.shape).astype("float32") / 3 for weight in model.get_weights()])
    return model


def examples(count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    inputs = {
        "numbers": random.normal(size=(count, 5)).astype("float32"),
        "codes": random.integers(0, 11, (count, 3)).astype("int32"),
    }
    labels = {
        "click": (random.random((count, 1)) < 0.4).astype("float32"),
        "play": random.normal(size=(count, 1)).astype("float32"),
    }
    return inputs, labels


def values(variables: Any) -> list[Any]:
    return [np.asarray(keras.ops.convert_to_numpy(variable), "float64").tolist() for variable in variables]


def watch_of(sinks: list[Sink], **options: Any) -> Watch:
    def opened(*places: Any, **given: Any) -> Sink:
        sinks.append(Sink(*places, **given))
        return sinks[-1]

    # On TensorFlow alone an embedding's gradient has a row for each look-up, which Keras applies one by one.
    merged = BACKEND == "tensorflow"
    return Watch("ads", "ranker", open_recorder=opened, dedupe_sparse=merged, **{"budget": None, **options})


def fit(optimizer: Any, *, count: int = 80, watch: bool = True, broken: int | None = None, **options: Any) -> Any:
    compiled = {name: options.pop(name) for name in ("steps_per_execution", "jit_compile") if name in options}
    epochs = options.pop("epochs", 1)
    sinks: list[Sink] = []
    mine = watch_of(sinks, **options) if watch else None
    model = model_of_two_tasks()
    model.compile(optimizer if mine is None else mine.wrap(optimizer), loss=LOSSES, **compiled)
    inputs, labels = examples(count)
    if broken is not None:
        inputs["numbers"][broken] = np.inf
    model.fit(
        inputs, labels, batch_size=8, shuffle=False, verbose=0, epochs=epochs, callbacks=[] if mine is None else [mine]
    )
    told = sinks[0].told() if sinks else {}
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    slots = [one for one in inner.variables if "lossguard" not in one.path]
    return {**told, "weights": values(model.weights), "slots": values(slots)}


OPTIMIZERS = {
    "SGD momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adam": lambda: keras.optimizers.Adam(0.02, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.02, weight_decay=0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "Nadam": lambda: keras.optimizers.Nadam(0.02),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1, l1_regularization_strength=0.01),
    "Lamb": lambda: keras.optimizers.Lamb(0.02),
    "ScheduleFreeAdamW": lambda: keras.optimizers.ScheduleFreeAdamW(0.02),
    "moving average": lambda: keras.optimizers.Adam(0.02, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.Adagrad(0.1, gradient_accumulation_steps=2),
}

TREATMENTS: dict[str, Any] = {
    "Clippy": lambda: Clippy(lambda_abs=1e-3),
    "GradientClipping": lambda: GradientClipping(),
    "AdaptiveGradientClipping": lambda: AdaptiveGradientClipping(threshold=1e-2),
    "units": lambda: AdaptiveGradientClipping(threshold=1e-2, norms="unit"),
    "LAMB": lambda: LAMB(mu=1e-2),
    "several": lambda: [SkipNonFinite(), Clippy(exclude=())],
    "PolyakCap": lambda: [AdaptiveGradientClipping(threshold=0.1, norms="unit"), PolyakCap(loss_floor=1.5)],
}


def optimizer(name: str) -> Any:
    return {
        "watched": fit(OPTIMIZERS[name](), count=40, full_every=1),
        **({} if BACKEND == "tensorflow" else {"bare": fit(OPTIMIZERS[name](), count=40, watch=False)}),
    }


def loss_scaling() -> Any:
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adagrad(0.1), initial_scale=8.0)
    return fit(scaled, count=40, broken=17, full_every=1)


def several_optimizers() -> Any:
    def both() -> Any:
        heads = {".*head.*": keras.optimizers.Adam(0.01)}
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.Adagrad(0.1), heads))

    return {"watched": fit(both(), count=40), "bare": fit(both(), count=40, watch=False)}


def saving() -> Any:
    inputs, labels = examples(40)
    sinks: list[Sink] = []

    def compiled(watch: Watch | None) -> keras.Model:
        model = model_of_two_tasks()
        made = keras.optimizers.Adam(0.02)
        model.compile(made if watch is None else watch.wrap(made), loss=LOSSES)
        return model

    def train(model: keras.Model, watch: Watch | None) -> keras.Model:
        callbacks = [] if watch is None else [watch]
        model.fit(inputs, labels, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    bare = train(train(compiled(None), None), None)
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        for first, second in ((True, False), (False, True)):
            for name in ("model.keras", "all.weights.h5"):
                mine = watch_of(sinks) if first else None
                file = Path(folder, f"{first}-{name}")
                model = train(compiled(mine), mine)
                model.save_weights(file) if name.endswith(".h5") else model.save(file)
                other = watch_of(sinks) if second else None
                if name.endswith(".h5"):
                    loaded = compiled(other)
                    loaded.optimizer.build(loaded.trainable_variables)
                    loaded.load_weights(file)
                else:
                    loaded = keras.saving.load_model(file)
                train(loaded, other)
                kind = f"{'watched' if first else 'bare'} {name}"
                told[kind] = [values(loaded.weights), [len(model.optimizer.variables), len(loaded.optimizer.variables)]]
    return {"bare": values(bare.weights), "loaded": told, "variables": len(bare.optimizer.variables)}


def detaching() -> Any:
    inputs, labels = examples(40)
    sinks: list[Sink] = []
    mine = watch_of(sinks, treatment=Clippy(lambda_abs=1e-3))
    model = model_of_two_tasks()
    made = keras.optimizers.Adagrad(0.1)
    before = set(made.__dict__)
    model.compile(mine.wrap(made), loss=LOSSES)
    model.fit(inputs, labels, batch_size=8, shuffle=False, verbose=0, callbacks=[mine])
    state = sorted(model.get_state_tree()["optimizer_variables"])
    mine.detach()
    model.fit(inputs, labels, batch_size=8, shuffle=False, verbose=0)
    return {
        "left": sorted(name for name in set(made.__dict__) - before if callable(made.__dict__[name])),
        "state": [state, sorted(model.get_state_tree()["optimizer_variables"])],
        "paths": [variable.path for variable in made.variables],
        "in_model": "compute_loss" in model.__dict__,
        "steps": sinks[0].told()["steps"],
        "iterations": int(keras.ops.convert_to_numpy(made.iterations)),
    }


def masked() -> Any:
    inputs = keras.Input((3,), dtype="int32")
    looked_up = keras.layers.Embedding(11, 2, mask_zero=True, name="embedding")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid", name="click")(looked_up))
    random = np.random.default_rng(7)
    model.set_weights([random.normal(size=weight.shape).astype("float32") / 3 for weight in model.get_weights()])
    codes = examples(40)[0]["codes"]
    codes[:, 2] *= codes[:, 0] % 2
    sinks: list[Sink] = []
    mine = watch_of(sinks, full_every=1, window_steps=10)
    model.compile(mine.wrap(keras.optimizers.SGD(0.1)), loss="binary_crossentropy")
    labels = (random.random((40, 3, 1)) < 0.4).astype("float32")
    model.fit(codes, labels, batch_size=8, shuffle=False, verbose=0, callbacks=[mine])
    return {**sinks[0].told(), "weights": values(model.weights)}


def again() -> Any:
    """A second Watch of the same model, which is detached within `fit`."""
    inputs, labels = examples(40)

    def trained(watched: bool) -> keras.Model:
        model = model_of_two_tasks()
        model.compile(keras.optimizers.Adam(0.02), loss=LOSSES)
        for epochs in (1, 2):
            callbacks: list[Any] = []
            if watched:
                mine = watch_of(sinks)
                out = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs=None, mine=mine: mine.detach())
                callbacks = [mine] if epochs == 1 else [mine, out]
            model.fit(inputs, labels, epochs=epochs, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    sinks: list[Sink] = []
    watched, bare = trained(True), trained(False)
    return {
        "steps": [sink.told()["steps"] for sink in sinks],
        "weights": values(watched.weights),
        "bare": values(bare.weights),
        "variables": [len(watched.optimizer.variables), len(bare.optimizer.variables)],
    }


def sharpness() -> Any:
    """Probes of a training, and one of a quadratic whose spectrum is known."""
    inputs, labels = examples(40)
    options: dict[str, Any] = {"first_products": 300, "products": 100, "tolerance": 1e-6}

    def ratios(told: dict[str, Any]) -> list[float]:
        return [value for value in told["scalars"]["sharpness_ratio"] if np.isfinite(value)]

    probe = Sharpness((inputs, labels), every=4, **options)
    probed = fit(OPTIMIZERS["Adam"](), count=40, epochs=2, sharpness=probe)
    sinks: list[Sink] = []
    x = np.random.default_rng(5).normal(size=(40, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    quadratic = watch_of(sinks, sharpness=Sharpness((x, x[:, :1]), every=1, **options))
    model.compile(quadratic.wrap(keras.optimizers.SGD(0.3)), loss="mse")
    model.fit(x, x[:, :1], batch_size=20, verbose=0, callbacks=[quadratic])
    top = np.linalg.eigvalsh(2.0 / 40 * x.astype("float64").T @ x).max()
    return {
        "ratios": ratios(probed),
        "costs": [cost for cost in probed["scalars"]["sharpness_cost"] if np.isfinite(cost)],
        "weights": probed["weights"],
        "bare": fit(OPTIMIZERS["Adam"](), count=40, epochs=2, watch=False)["weights"],
        "quadratic": [ratios(sinks[0].told()), 0.3 * top / 2.0],
    }


def going_back() -> Any:
    """A feature that is Inf in one batch breaks the weights; the copies in memory mend them."""
    inputs, labels = examples(800)
    inputs["numbers"][500] = np.inf
    sinks: list[Sink] = []
    mine = watch_of(sinks, on_full_divergence=Rollback(snapshot_steps=10, then="half_learning_rate"))
    model = model_of_two_tasks()
    model.compile(mine.wrap(keras.optimizers.Adagrad(0.05)), loss=LOSSES)
    try:
        model.fit(inputs, labels, batch_size=8, shuffle=False, verbose=0, callbacks=[mine])
        stopped = ""
    except TrainingStopped as error:
        stopped = str(error)
    return {
        "stopped": stopped,
        "attempts": [sink.told()["ended"] for sink in sinks],
        "rollbacks": sinks[-1].config.get("rollbacks", []),
        "finite": bool(np.isfinite(np.concatenate([weight.ravel() for weight in model.get_weights()])).all()),
        "update_norm": sinks[-1].told()["stats"]["shared/kernel"]["update_norm"][:3],
        "factor": sinks[-1].told()["stats"]["shared/kernel"]["clipping_factor"][:3],
    }


def failing() -> Any:
    sinks: list[Sink] = []
    mine = watch_of(sinks)
    inputs, labels = examples(40)
    model = model_of_two_tasks()
    model.compile(mine.wrap(keras.optimizers.Adagrad(0.1)), loss=LOSSES, run_eagerly=True)
    bare, steps = model.train_step, iter(range(5))

    def train_step(*arguments: Any) -> Any:
        if next(steps) == 3:
            raise RuntimeError("theirs")
        return bare(*arguments)

    model.train_step = train_step
    try:
        model.fit(inputs, labels, batch_size=8, shuffle=False, verbose=0, callbacks=[mine])
    except RuntimeError as error:
        return {"raised": str(error) == "theirs", **sinks[0].told()}
    return {"raised": False}


def own_loop() -> Any:
    model = model_of_two_tasks()
    made = keras.optimizers.Adam(0.02)
    sinks: list[Sink] = []
    mine = watch_of(sinks, tasks={"click": "binary", "play": "regression"}, logits=["click"], full_every=1)
    mine.wrap(made)
    made.build(model.trainable_variables)
    inputs, labels = examples(8)
    click, play = keras.losses.BinaryCrossentropy(from_logits=True), keras.losses.MeanSquaredError()

    def loss_of(outputs: Any) -> Any:
        parts = {"click": click(labels["click"], outputs["click"]), "play": play(labels["play"], outputs["play"])}
        loss = parts["click"] + 2.0 * parts["play"]
        mine.observe(loss, labels, outputs, task_losses=parts)
        return loss

    step: Any = {"jax": _jax_loop, "torch": _torch_loop, "tensorflow": _tensorflow_loop}[BACKEND]
    with mine:
        step(model, made, inputs, loss_of, mine)
    return {**sinks[0].told(), "weights": values(model.weights)}


def _tensorflow_loop(model: Any, optimizer: Any, inputs: Any, loss_of: Any, watch: Watch) -> None:
    import tensorflow as tf

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(model(inputs, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    for _ in range(4):
        step()
        watch.after_step()


def _jax_loop(model: Any, optimizer: Any, inputs: Any, loss_of: Any, watch: Watch) -> None:
    import jax

    def loss(trainable: Any) -> Any:
        outputs, _ = model.stateless_call(trainable, [], inputs, training=True)
        return loss_of(outputs)

    @jax.jit
    def step(trainable: Any, state: Any) -> Any:
        return optimizer.stateless_apply(state, jax.grad(loss)(trainable), trainable)

    trainable, state = ([one.value for one in some] for some in (model.trainable_variables, optimizer.variables))
    for _ in range(4):
        trainable, state = step(trainable, state)
        watch.after_step(state)
    for one, value in zip(model.trainable_variables, trainable, strict=True):
        one.assign(value)


def _torch_loop(model: Any, optimizer: Any, inputs: Any, loss_of: Any, watch: Watch) -> None:
    import torch

    for _ in range(4):
        model.zero_grad()
        loss_of(model({name: torch.as_tensor(value) for name, value in inputs.items()}, training=True)).backward()
        gradients = [one.value.grad for one in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(gradients, model.trainable_variables)
        watch.after_step()


def scenarios() -> dict[str, Any]:
    found: dict[str, Any] = {
        "cadence": lambda: fit(OPTIMIZERS["Adagrad"](), full_every=4, epochs=2),
        "window": lambda: fit(
            OPTIMIZERS["Adagrad"](), window_steps=20, batch_id=lambda x: x["codes"][0, 0] + (1 << 24)
        ),
        "broken": lambda: fit(OPTIMIZERS["Adam"](), broken=17, count=40, full_every=16),
        "skipped": lambda: fit(OPTIMIZERS["Adam"](), broken=17, count=40, treatment=[SkipNonFinite(), Clippy()]),
        "eager": lambda: fit(OPTIMIZERS["Adagrad"](), count=40, full_every=4, jit_compile=False),
        "loss scaling": loss_scaling,
        "several optimizers": several_optimizers,
        "saving": saving,
        "detaching": detaching,
        "again": again,
        "masked": masked,
        "going back": going_back,
        "failing": failing,
        "own loop": own_loop,
    }
    if BACKEND == "tensorflow":
        # What is compared with the bare optimizer of the same backend: `tests/keras` does it for this one.
        for name in ("saving", "detaching", "again", "going back", "failing"):
            del found[name]
    if BACKEND != "torch":
        found["sharpness"] = sharpness
    if BACKEND == "jax":
        found["together"] = lambda: fit(OPTIMIZERS["Adagrad"](), full_every=4, epochs=2, steps_per_execution=4)
    found |= {
        f"treatment {name}": lambda made=made: fit(OPTIMIZERS["Adagrad"](), count=40, full_every=1, treatment=made())
        for name, made in TREATMENTS.items()
    }
    found |= {f"optimizer {name}": lambda name=name: optimizer(name) for name in OPTIMIZERS}
    return found


def main(out: str, only: list[str]) -> None:
    lossguard.guard.swallow = raised
    frameworks = ("jax", "tensorflow", "torch")
    told: dict[str, Any] = {"imported": [name for name in frameworks if sys.modules.get(name) is not None]}
    for name, scenario in scenarios().items():
        if only and name not in only:
            continue
        try:
            told[name] = scenario()
        except Exception:
            told[name] = {"error": traceback.format_exc()}
        Path(out).write_text(json.dumps(told), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
