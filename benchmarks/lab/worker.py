"""A worker process: trains what it is given and puts each outcome into the cache.

It keeps the compiled steps of its last groups, so that configurations that share one cost their steps alone.
"""

import multiprocessing
import os
import signal
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.config import Config, Outcome
from lab.data import LabData, Source, read

KEPT_STEPS = 2


@dataclass(slots=True)
class _State:
    source: Source
    cache: Any
    data: LabData
    says: Any
    stop: Any
    trainers: "OrderedDict[tuple[Any, ...], Any]"


_state: _State | None = None


def begin(source: Source, folder: Path, threads: int, says: Any, stop: Any) -> None:
    """Make the process ready; called once in it.

    Args:
        source: of the rows.
        folder: of the cache.
        threads: that TensorFlow may use.
        says: a queue; each finished run is told there.
        stop: an event; once it is set no further run begins.
    """
    global _state
    # Ctrl-C ends the parent, which ends its workers; a killed one cannot, and they would wait for work for ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    data = read(source)
    # What TensorFlow's libraries print before they can be told not to is no news to anybody.
    quiet = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(2)
    os.dup2(quiet, 2)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.zeros([1])
    os.dup2(kept, 2)
    from lab.cache import Cache

    _state = _State(source, Cache(folder, data.fingerprint, source.reference), data, says, stop, OrderedDict())


def train(configs: list[Config]) -> int:
    """Train configurations that share a compiled step; how many there were."""
    from lab import judge
    from lab.train import Trainer

    assert _state is not None
    for config in configs:
        if _state.stop.is_set():
            break
        if _state.cache.load(config) is not None:
            continue
        trainer = _state.trainers.pop(config.compiled, None)
        compile_seconds = 0.0
        if trainer is None:
            while len(_state.trainers) >= KEPT_STEPS:
                _state.trainers.popitem(last=False)
            trainer = Trainer(config, _state.data)
            compile_seconds = trainer.compile_seconds
        _state.trainers[config.compiled] = trainer
        trained = trainer.run(config)
        outcome = Outcome(
            config=config,
            **judge.verdicts(config, trained.frames, trained.final, _state.source.reference),
            final=trained.final,
            curve=trained.curve,
            sharpness=trained.sharpness,
            digest=trained.digest,
            cpu_seconds=trained.cpu_seconds,
            wall_seconds=trained.wall_seconds,
            compile_seconds=compile_seconds,
        )
        meta = {"name": name(config), "tasks": dict(judge.kinds(config)), "config": asdict(config)}
        labels = {"hindsight": outcome.hindsight, "onset": outcome.onset, "final": outcome.final}
        _state.cache.store(outcome, trained.frames, meta | {"labels": labels})
        _state.says.put((name(config), trained.cpu_seconds + compile_seconds))
    return len(configs)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def name(config: Config) -> str:
    """A run's name for people; not unique."""
    return f"{config.bottom}-{config.optimizer}-{config.treatment}-{config.learning_rate:g}-s{config.seed}"
