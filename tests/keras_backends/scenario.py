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

sys.path.append(str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
from fits import BACKEND, Sink, fit, model_of_two_tasks, values, watch_of
from held import held
from loops import own_loop
from spectra import products, sharpness

import lossguard.guard
from click_and_play import LOSSES, examples
from lossguard.keras import (
    LAMB,
    AdaptiveGradientClipping,
    Clippy,
    GradientClipping,
    PolyakCap,
    Rollback,
    SkipNonFinite,
    TrainingStopped,
    Watch,
    measure,
)


def raised(entry: str, error: Exception) -> None:
    raise error


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


def norms() -> Any:
    """How far off the norms of layers of all sizes are, and whether what is not finite shows in them."""
    random = np.random.default_rng(1)
    shapes = [(1,), (511,), (512,), (513,), (3, 5, 401), (1024, 1024), (1 << 20,)]
    layers = [random.normal(size=shape).astype("float32") for shape in shapes] + [np.full((1 << 20), 0.1, "float32")]
    exact = [float(np.linalg.norm(one.astype("float64"))) for one in layers]
    spoilt = [layers[4].copy(), layers[4].copy(), layers[4].copy()]
    spoilt[0].flat[0], spoilt[1].flat[-1], spoilt[2].flat[-1] = np.nan, np.nan, np.inf
    found = keras.ops.convert_to_numpy(measure.norms([keras.ops.convert_to_tensor(one) for one in layers + spoilt]))
    errors = [abs(float(one) / true - 1) for one, true in zip(found, exact, strict=False)]
    return {"off": max(errors), "spoilt": [str(float(one)) for one in found[len(layers) :]]}


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
        "norms": norms,
        "sharpness": sharpness,
    }
    if BACKEND == "tensorflow":
        # What is compared with the bare optimizer of the same backend: `tests/keras` does it for this one.
        for name in ("saving", "detaching", "again", "going back", "failing"):
            del found[name]
    if BACKEND == "torch":
        found["products"] = products
    if BACKEND == "jax":
        found["held"] = held
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
