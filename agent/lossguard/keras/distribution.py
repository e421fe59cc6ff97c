"""Several replicas and several processes: who journals, and what Keras itself cannot do there.

Guarantees. What bare Keras 3.15 cannot train is refused with a sentence before the first step, not half-supported. Of
the processes of a `MultiWorkerMirroredStrategy` rank 0, the chief, journals; the others leave signs of life
(`lossguard.worker`). All of them take part in the step, whose collectives would wait for ever for one that does not.
"""

from collections.abc import Sequence
from typing import Any


def strategy_of(optimizer: Any) -> Any:
    """The `tf.distribute` strategy that an optimizer was made in; None on other backends."""
    return getattr(optimizer, "_distribution_strategy", None)


def rank_of(optimizers: Sequence[Any]) -> int:
    """This process's place among those that train together; 0 is the chief, and any process that trains alone."""
    processes = _processes(strategy_of(optimizers[0])) if optimizers else {}
    if sum(processes.values()) < 2:
        return 0
    resolver = strategy_of(optimizers[0]).cluster_resolver
    before = processes.get("chief", 0) if resolver.task_type == "worker" else 0
    return before + int(resolver.task_id or 0)


def refuse(optimizer: Any, model: Any = None, *, acts: bool = False) -> None:
    """Refuse what cannot be trained, or done, under the optimizer's strategy.

    Args:
        optimizer: one that updates variables itself.
        model: compiled, to be trained by `fit`; None for a loop of one's own.
        acts: whether the watch is to stop or roll back the training by itself.

    Raises:
        ValueError: it cannot; the message says what to do.
    """
    strategy = strategy_of(optimizer)
    if strategy is None:
        return
    import tensorflow as tf

    several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    name = "MultiWorkerMirroredStrategy" if several_workers else type(strategy).__name__
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(f"optimizer: it was made under {name}, whose updates run on other machines; use another one")
    if not several_workers and not isinstance(strategy, tf.distribute.MirroredStrategy):
        return
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"optimizer: Keras cannot accumulate gradients under {name} (keras#20582); leave "
            "gradient_accumulation_steps out, or add up the gradients in a loop of your own"
        )
    several = sum(_processes(strategy).values()) > 1
    if several and acts:
        raise ValueError(
            "on_full_divergence: one process cannot stop or roll back the others, which would wait for it for ever; "
            'with several workers use "advise"'
        )
    if model is None:
        return
    if several:
        raise ValueError(
            f"model: Keras 3 cannot fit under {name} with several workers (keras#20585); write a loop of your own, "
            "with strategy.run in it, and give its optimizer to watch.wrap"
        )
    if strategy.num_replicas_in_sync < 2:
        return
    if int(model.steps_per_execution) > 1:
        raise ValueError(
            f"model: Keras cannot run several steps per execution under {name} (keras#19246); "
            "compile it with steps_per_execution=1"
        )
    if model.jit_compile is True and all("CPU" in device for device in strategy.extended.worker_devices):
        raise ValueError(f"model: XLA cannot compile a step of several CPU replicas; compile it under {name} without")


def _processes(strategy: Any) -> dict[str, int]:
    """How many processes of each kind train; empty if it is this one alone."""
    if strategy is None:
        return {}
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return {}
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return {kind: len(cluster[kind]) for kind in ("chief", "worker") if kind in cluster}
