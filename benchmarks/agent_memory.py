"""Where the memory goes that watching takes in the trainer's process, stage by stage (Linux, TensorFlow).

Each row is a stage of a training; its figures are those of the watched process less those of the bare one, medians of
three processes each, in MiB: `peak` the largest resident size during the stage, then at its end the resident size,
what of it is anonymous (the heap, tensors) and what are pages of files (code that is touched for the first time), what
`malloc` has given out, and the most that TensorFlow's tensors held during the stage, over the bare one's; `host` is
`peak` less that. `nodes` are the operations in the functions that TensorFlow's runtime has, of which it keeps several
copies.

Models: `mlp-1024`, the one of `overhead.py`; `layers-N`, N small layers, whose tensors are nothing and whose graph is
all. With `--steps N` the last stage is N steps more, in four quarters: what grows there is a leak. At the end what a
sidecar's process takes, for the record.

    python benchmarks/agent_memory.py [--model mlp-1024 layers-100 ...] [--steps N] [--turns 3] [--jit]
        [--watch OPTIONS]
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
MIB = 2.0**20
COLUMNS = ("peak", "resident", "anonymous", "files", "malloc", "tensors", "nodes")
SIDECAR = {
    "python alone": "",
    "sidecar, imported": "import lossguard.sidecar.dispatcher, lossguard.cli.main",
}
SAY_RESIDENT = "; print([l for l in open('/proc/self/status') if l.startswith('VmRSS')][0].split()[1])"


class Mallinfo(ctypes.Structure):
    """What `mallinfo2` of the C library answers: ten sizes."""

    _fields_ = (("sizes", ctypes.c_size_t * 10),)


def malloced() -> float:
    """MiB that malloc has given out, small and large; 0 where there is no such call."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0.0
    ask.restype = Mallinfo
    answer = ask()
    mapped, in_use = answer.sizes[4], answer.sizes[7]
    return float(mapped + in_use) / MIB


def stage(tf: Any) -> dict[str, float]:
    """The figures now; the next stage's peaks begin here."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    keys = {"peak": "VmHWM", "resident": "VmRSS", "anonymous": "RssAnon", "files": "RssFile"}
    found = {name: int(status[key].split()[0]) / 1024 for name, key in keys.items()}
    found["malloc"] = malloced()
    found["tensors"] = tf.config.experimental.get_memory_info("CPU:0")["peak"] / MIB
    Path("/proc/self/clear_refs").write_text("5")
    tf.config.experimental.reset_memory_stats("CPU:0")
    return found


def nodes(context: Any) -> int:
    """Operations in the functions that the runtime has."""
    names = context.list_function_names()
    return sum(len(context.get_function_def(name).node_def) for name in names)


def built(model: str, steps: int, jit: bool) -> tuple[Any, Any, int]:
    """A compiled model, its data, and how many steps they are."""
    import keras
    import numpy as np
    import tensorflow as tf

    from workloads import mlp, mlp_data

    if model == "mlp-1024":
        net, batch, (x, y) = mlp(), 1024, mlp_data(1024 * 16)
    else:
        keras.utils.set_random_seed(1)
        inputs = hidden = keras.Input((16,))
        for _ in range(int(model.split("-")[1])):
            hidden = keras.layers.Dense(16, activation="tanh")(hidden)
        net, batch, (x, y) = keras.Model(inputs, keras.layers.Dense(1)(hidden)), 16, mlp_data(256)
        x = np.ascontiguousarray(x[:, :16])
    net.compile(keras.optimizers.Adagrad(1e-6), loss="mse", jit_compile=jit)
    return net, tf.data.Dataset.from_tensor_slices((x, y)).batch(batch), max(1, steps // 64)


def train(model: str, watched: bool, steps: int, jit: bool, options: dict[str, Any]) -> list[tuple[str, Any]]:
    """The stages of one process."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.zeros([2]).numpy()
    rows = [("before", stage(tf))]

    def note(name: str) -> None:
        rows.append((name, stage(tf)))

    if watched:
        from lossguard.keras import Watch
    note("import lossguard.keras")
    net, data, epochs = built(model, steps, jit)
    note("model and data")
    with tempfile.TemporaryDirectory() as folder:
        callbacks = []
        if watched:
            callbacks.append(Watch("bench", "run", journal=folder, **options))
            callbacks[0].__enter__()
        note("Watch, entered")
        net.fit(data, verbose=0, callbacks=callbacks)
        note("first 16 steps: trace, journal, threads")
        time.sleep(1.0)
        for _ in range(2):
            net.fit(data, verbose=0, callbacks=callbacks)
        note("32 steps more: the price is clocked")
        for quarter in range(1, 5):
            net.fit(data, verbose=0, epochs=epochs, callbacks=callbacks)
            note(f"{16 * epochs} steps, quarter {quarter}")
        if watched:
            callbacks[0].close()
        note("closed")
    # Asked at the end: the answer takes memory itself.
    from tensorflow.python.eager import context

    rows[-1][1]["nodes"] = float(nodes(context.context()))
    return rows


def apart(model: str, watched: bool, chosen: argparse.Namespace) -> list[tuple[str, Any]]:
    """The same in a process of its own."""
    given = ["--part", "watched" if watched else "bare", "--model", model, "--steps", str(chosen.steps)]
    given += ["--watch", chosen.watch, *(["--jit"] if chosen.jit else [])]
    done = subprocess.run([sys.executable, __file__, *given], stdout=subprocess.PIPE, text=True, check=True)
    found: list[tuple[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(model: str, chosen: argparse.Namespace) -> None:
    """Print a model's."""
    turns = [(apart(model, False, chosen), apart(model, True, chosen)) for _ in range(chosen.turns)]
    print(f"{model}, jit {chosen.jit}, watch({chosen.watch}); MiB over bare, medians of {chosen.turns} processes")
    print(f"{'':40}{'peak':>9}{'host':>9}" + "".join(f"{name:>10}" for name in COLUMNS[1:]) + f"{'bare peak':>12}")
    for place, (name, _) in enumerate(turns[0][0]):
        over = {
            column: statistics.median(mine[place][1][column] - bare[place][1][column] for bare, mine in turns)
            for column in COLUMNS
            if column in turns[0][0][place][1]
        }
        figures = "".join(f"{over[column]:+10.1f}" if column in over else f"{'':10}" for column in COLUMNS[1:])
        bare_peak = statistics.median(bare[place][1]["peak"] for bare, _ in turns)
        print(f"{name:40}{over['peak']:+9.1f}{over['peak'] - over['tensors']:+9.1f}{figures}{bare_peak:12.1f}")
    print(flush=True)


def sidecar() -> None:
    """Print what a sidecar's process takes before it has anything to do."""
    for name, imports in SIDECAR.items():
        script = (imports or "pass") + SAY_RESIDENT
        said = subprocess.check_output([sys.executable, "-c", script], text=True)
        print(f"{name:40}{int(said) / 1024:9.1f} MiB resident")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["mlp-1024", "layers-100"])
    parser.add_argument("--steps", type=int, default=64, help="of the last stage, in four quarters")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--watch", default="{}", help='options of Watch, JSON: {"full_every": 1}')
    parser.add_argument("--part", choices=["bare", "watched"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        options = json.loads(chosen.watch)
        print(json.dumps(train(chosen.model[0], chosen.part == "watched", chosen.steps, chosen.jit, options)))
        return
    for model in chosen.model:
        table(model, chosen)
    sidecar()


if __name__ == "__main__":
    main()
