"""Writes the event file of this folder with TensorFlow's own writer: `python tests/trace/golden/make.py`.

20 steps of `train/loss` (a tensor summary, as Keras writes it), the learning rate, a NaN and an Inf, and a text summary
that readers have to pass over.
"""

import os
from pathlib import Path

import tensorflow as tf

FOLDER = Path(__file__).parent


def main() -> None:
    """Write it."""
    for old in FOLDER.glob("*tfevents*"):
        old.unlink()
    writer = tf.summary.create_file_writer(str(FOLDER))
    with writer.as_default():
        for step in range(1, 21):
            loss = 2.0 / step if step not in (10, 11) else float("nan") if step == 10 else float("inf")
            tf.summary.scalar("train/loss", loss, step=step)
            tf.summary.scalar("learning_rate", 0.1, step=step)
        tf.summary.text("note", "not a number", step=20)
    writer.close()
    (written,) = FOLDER.glob("*tfevents*")
    os.rename(written, FOLDER / "events.out.tfevents.golden")


if __name__ == "__main__":
    main()
