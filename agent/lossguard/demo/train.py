"""One watched training, in a process of its own: `python -m lossguard.demo.train SPEC.json`.

Guarantees: the same specification gives the same weights, bit for bit, on one machine (one thread computes). Standard
output carries one JSON object per line and nothing else: `{"step"}` as it goes, at the end `{"step",
"metrics", "attempt"}`, or `{"error"}` with a sentence and exit code 2. The export is complete when the last line is
written. SIGTERM ends the training in good order, as an interrupted one.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from lossguard.wire.numbers import to_json

STEPS_PER_EXECUTION = 8
PREDICTION_BATCH = 8192
CHECKPOINTS = 10


@dataclass(frozen=True, slots=True)
class Spec:
    """What to train.

    Attributes:
        project, run: whose frames these are.
        treatment: "none" is plain Adagrad.
        seed: of weights, batches and generated data.
        steps: optimizer updates.
        learning_rate: the peak of the ramp.
        data: folder of KuaiRand-Pure; None generates a stream.
        journal: folder of the journals.
        export: folder that the SavedModel goes to.
        checkpoints: folder for the checkpoints, weights with optimizer slots; ten in a training.
    """

    project: str
    run: str
    treatment: Literal["none", "clippy"]
    seed: int
    steps: int
    learning_rate: float
    data: str | None
    journal: str
    export: str
    checkpoints: str

    def dumps(self) -> str:
        """The specification as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Self:
        """The inverse of `dumps`."""
        return cls(**json.loads(text))


def train(spec: Spec, say: Any) -> None:
    """Train, export and evaluate.

    Args:
        spec: what to train.
        say: called with each line's object.

    Raises:
        DataError: the data cannot be used.
    """
    from lossguard.demo import batches, evaluate, source
    from lossguard.demo.features import TASKS

    examples = source.examples(Path(spec.data) if spec.data is not None else None, spec.seed)
    # After the data, so that a wrong folder is answered before TensorFlow has loaded.
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from lossguard.demo import ranker
    from lossguard.demo.schedule import Ramp
    from lossguard.keras import Clippy, Watch

    model = ranker.build(examples.rows, examples.categorical.shape[1], examples.numeric.shape[1], spec.seed)
    watch = Watch(
        spec.project,
        spec.run,
        journal=spec.journal,
        tasks=dict(TASKS),
        # What the page shows of a training must not depend on the machine's speed.
        budget=None,
        # The paper leaves embeddings untreated (section 5.1.3).
        treatment=Clippy(exclude=("embedding",)) if spec.treatment == "clippy" else None,
    )
    optimizer = keras.optimizers.Adagrad(Ramp(spec.steps, spec.learning_rate), initial_accumulator_value=0.1)
    model.compile(
        optimizer=watch.wrap(optimizer),
        loss=ranker.losses(),
        steps_per_execution=STEPS_PER_EXECUTION,
        jit_compile=False,
    )
    rows = batches.indices(examples, spec.steps, spec.seed).ravel()

    folder = Path(spec.checkpoints)
    folder.mkdir(parents=True, exist_ok=True)
    saved = 0
    attempt: str | None = None

    def tell(batch: int, logs: Any = None) -> None:
        nonlocal saved, attempt
        step, attempt = batch + 1, watch.attempt or attempt
        say({"step": step})
        if step * CHECKPOINTS // spec.steps > saved:
            saved = step * CHECKPOINTS // spec.steps
            path = folder / f"step-{step:06d}.keras"
            model.save(path)
            watch.checkpoint(path, step=step)

    progress = keras.callbacks.LambdaCallback(on_train_batch_end=tell)
    model.fit(
        {"categorical": examples.categorical[rows], "numeric": examples.numeric[rows]},
        {task: values[rows, None] for task, values in examples.labels.items()},
        batch_size=batches.BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[watch, progress],
    )
    held_out = slice(examples.training, None)
    predicted = model.predict(
        {"categorical": examples.categorical[held_out], "numeric": examples.numeric[held_out]},
        batch_size=PREDICTION_BATCH,
        verbose=0,
    )
    found = evaluate.metrics({task: values[held_out] for task, values in examples.labels.items()}, predicted)
    # Keras announces exports on standard output, which is ours.
    ranker.serving(model).export(spec.export, format="tf_saved_model", verbose=False)
    say({"step": spec.steps, "metrics": found, "attempt": attempt})


def main(arguments: list[str]) -> int:
    """The process's entry point: one argument, the file of the specification."""
    # Only errors: what TensorFlow says about this machine's instruction sets is no news to the reader of the log.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    signal.signal(signal.SIGTERM, _interrupt)
    # Whatever a library prints goes to the log; the lines keep standard output to themselves.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(to_json(line)), file=lines, flush=True)

    from lossguard.demo.tables import DataError

    try:
        train(Spec.loads(Path(arguments[0]).read_text()), say)
    except DataError as error:
        say({"error": str(error)})
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
