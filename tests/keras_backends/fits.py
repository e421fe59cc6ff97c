"""Small models, their data, and what their frames say: the same on every backend."""

from typing import Any

import keras
import numpy as np

from click_and_play import LOSSES, click_and_play, examples
from lossguard.keras import Watch
from lossguard.wire.stats import STAT_NAMES

BACKEND = keras.backend.backend()


class Sink:
    """A recorder that keeps what it gets."""

    def __init__(self, *places: Any, **options: Any) -> None:
        self.config = options["config"]
        self.blocks: list[Any] = []
        self.drops: dict[str, int] = {}
        self.ended, self.skipped = "", 0

    def record(self, frames: Any) -> bool:
        self.blocks.append(frames)
        return True

    def event(self, event: Any) -> bool:
        return True

    def drop(self, reason: str, count: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + count

    def seal(self) -> None: ...

    def close(self, reason: str = "finished", timeout_seconds: float = 30.0, *, skipped_steps: int = 0) -> None:
        self.ended, self.skipped = reason, skipped_steps

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
            "full": np.concatenate([block.stats_present[:, : len(STAT_NAMES)].min(1) for block in blocks]).tolist(),
            "scalars": {
                name: scalars[:, place].tolist()
                for place, name in enumerate(schema.scalars)
                if not name.startswith("agent_")
            },
            "stats": {
                layer: {stat: stats[:, row, column].tolist() for column, stat in enumerate(STAT_NAMES)}
                for row, layer in enumerate(schema.layers)
            },
        }


def model_of_two_tasks() -> keras.Model:
    model = click_and_play()
    random = np.random.default_rng(7)
    # The backends' own random numbers differ.
    model.set_weights([random.normal(size=weight.shape).astype("float32") / 3 for weight in model.get_weights()])
    return model


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
