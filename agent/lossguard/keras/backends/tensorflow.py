"""TensorFlow: the step is a graph, perhaps compiled by XLA, perhaps on several replicas.

Guarantees. No host call, no collective beyond the sum of a few scalars; only ops that exist with and without XLA and on
mirrored and TPU variables (decision 0202). Graphs are the user's, so nothing here goes through AutoGraph.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

import keras
import tensorflow as tf
from keras import tree
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.python.framework.func_graph import dismantle_func_graph

from lossguard.keras.backends import tensorflow_xla
from lossguard.keras.backends.interface import Hooked, Indices
from lossguard.keras.backends.skips import count_skips as count_skips
from lossguard.keras.backends.skips import forget_skips as forget_skips

_LOWERED: Final = "_lower_using_switch_merge"

END_OF_DATA: Final = (StopIteration, tf.errors.OutOfRangeError)
WHOLE: Final = "int64"
IN_PLACE: Final = False  # in a graph a value that was read stays what it was


def version() -> str:
    return tf.__version__


def on_host() -> bool:
    return all(device.device_type.endswith("CPU") for device in tf.config.list_logical_devices())


# --- tensors


def read(variable: Any) -> Any:
    return tf.convert_to_tensor(variable)


def bits(values: Any) -> Any:
    return tf.bitcast(values, tf.int32)


def norms(tensors: Sequence[Any]) -> Any:
    if _in_xla() and on_host():
        return tf.sqrt(tf.stack([tensorflow_xla.total(tf.square(tf.reshape(one, [-1]))) for one in tensors]))
    # One pass without a temporary of the squares: a third cheaper on CPU than square and sum.
    return tf.sqrt(2.0 * tf.stack([tf.nn.l2_loss(one) for one in tensors]))


def branch(wanted: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    given = tf.cond(wanted, yes, no)
    chosen = None if tf.executing_eagerly() else given.op
    while chosen is not None and chosen.type == "Identity":
        chosen = chosen.inputs[0].op
    if chosen is not None and chosen.type in ("If", "StatelessIf"):
        if branches_cheaply() and not tf.distribute.has_strategy():
            # One operation that it is, and not a switch for each of some hundred tensors that it may read: on CPU, with
            # 27 layers, half of what a cheap step's row takes (decision 0215).
            chosen._set_attr(_LOWERED, AttrValue(b=False))
        _forget_branches(chosen)
    return given


def _forget_branches(chosen: Any) -> None:
    """Let go of the Python graphs of a conditional's branches, which are functions of the runtime by now.

    TensorFlow keeps them for a gradient through the conditional, and makes them again of the functions where they are
    missing (`cond_v2.get_func_graphs`, `AtomicFunction.graph`). They take more memory than all else of ours that is
    traced (decision 0223). These are private names: where a TensorFlow has others, the graphs are kept.
    """
    with suppress(AttributeError):
        for name in ("_true_graph", "_false_graph"):
            graph = getattr(chosen, name, None)
            function = None if graph is None else chosen.graph._functions.get(graph.name)
            if function is not None and getattr(function, "_cached_graph", None) is graph:
                function._cached_graph = None
                setattr(chosen, name, None)
                dismantle_func_graph(graph)


def settled(wanted: Any) -> Any:
    return wanted


def branches_cheaply() -> bool:
    return not tf.config.list_logical_devices("GPU") and not _in_xla()


def dense(tensor: Any, weight: Any, plain: bool = False) -> Any:
    """Rows that stand twice are added up.

    Keras itself computes over the whole table at each step, so this is of the same order; merging rows by sorting cost
    a fifth of the step of a ranker with 28 columns. The table's static length, and not `dense_shape`, which would make
    XLA compile every step anew: Keras's division may append rows whose number depends on the data.

    A product with a sparse matrix of ones takes a third of the segment sum's time on CPU, but XLA does not have it. So
    only where it is known who compiles the step: a function that is traced without XLA may be called within it later.
    """
    if not isinstance(tensor, tf.IndexedSlices):
        return tensor
    values, rows, length = tensor.values, tensor.indices, weight.shape[0]
    if not plain or values.dtype != tf.float32 or tf.config.list_logical_devices("GPU") or _in_xla():
        return tf.math.unsorted_segment_sum(values, rows, length)
    count = tf.shape(rows, tf.int64)[0]
    matrix = tf.SparseTensor(
        tf.stack([tf.cast(rows, tf.int64), tf.range(count)], 1), tf.ones_like(rows, tf.float32), [length, count]
    )
    total = tf.sparse.sparse_dense_matmul(matrix, tf.reshape(values, tf.stack([count, -1])))
    return tf.reshape(total, weight.shape)


def _in_xla() -> bool:
    """Whether what is being traced will be compiled by XLA, here or further out."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False


def scale(value: Any, factor: Any) -> Any:
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(value.values * tf.cast(factor, value.dtype), value.indices, value.dense_shape)
    return value * tf.cast(factor, value.dtype)


def copy(variable: Any) -> Any:
    return tf.identity(variable.value)


def compiled(function: Callable[[Any], Any], jit: bool) -> Callable[[Any], Any]:
    made: Callable[[Any], Any] = tf.function(function, autograph=False, jit_compile=jit)
    return made


# --- the step


class Placement:
    """Two methods of the optimizer: one runs on each replica, the other one across them.

    What is summed over replicas is summed in the first, where they can talk. Its results travel to the second in the
    learning rate's place, the one argument that Keras hands through unread.
    """

    def __init__(self, hook: Hooked) -> None:
        self.hook = hook
        optimizer = hook.optimizer
        self._bare_update = optimizer._backend_update_step
        optimizer._backend_update_step = self._update_step
        optimizer._distributed_tf_update_step = self._distributed

    def cover(self, optimizer: Any) -> None:
        pass

    def prepare(self) -> None:
        pass

    def remove(self) -> None:
        for name in ("_backend_update_step", "_distributed_tf_update_step"):
            self.hook.optimizer.__dict__.pop(name, None)

    @tf.autograph.experimental.do_not_convert
    def _update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        scalars = self.hook.scalars(learning_rate)
        packed = (learning_rate, scalars, self.hook.position())
        self._bare_update(grads, trainable_variables, packed)

    @tf.autograph.experimental.do_not_convert
    def _distributed(self, distribution: Any, grads_and_vars: Any, packed: Any) -> None:
        with tf.init_scope(), distribution.scope():
            ring = self.hook.make_ring()
        if not self.hook.skips:
            self._run(distribution, ring, grads_and_vars, packed, leave_out=False)
            return
        # The gradients are summed over the replicas by now: each has the same.
        local = [distribution.experimental_local_results(gradient)[0] for gradient, _ in grads_and_vars]
        values = [one.values if isinstance(one, tf.IndexedSlices) else one for one in local]
        finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(one)) for one in values]))
        tf.cond(
            finite,
            lambda: self._run(distribution, ring, grads_and_vars, packed, leave_out=False),
            lambda: self._run(distribution, ring, grads_and_vars, packed, leave_out=True),
        )

    def _run(self, distribution: Any, ring: Any, grads_and_vars: Any, packed: Any, *, leave_out: bool) -> None:
        """Decide, then propose, measure and write group by group, each on every replica."""
        hook = self.hook
        learning_rate, scalars, position = packed
        if not leave_out and _in_xla() and not tf.distribute.has_strategy() and tensorflow_xla.knows(hook.optimizer):
            tensorflow_xla.run(hook, ring, grads_and_vars, learning_rate, scalars, position)
            return
        update = distribution.extended.update
        local = [[distribution.experimental_local_results(one) for one in pair] for pair in grads_and_vars]
        # A replica is known by the order of the calls: its id is a symbolic tensor under the default strategy.
        count = _Counter()
        rows: dict[int, Any] = {}
        pending: dict[int, list[Any]] = {}
        # Without this the graph would compute all updates as soon as the gradients are there, and hold them.
        before: dict[int, list[Any]] = {}

        def begin(copy: Any, learning_rate: Any, position: Any) -> None:
            replica = count.next()
            gradients, variables = ([values[replica] for values in side] for side in zip(*local, strict=True))
            rows[replica] = hook.begin_row(ring, copy, gradients, variables, position, learning_rate)

        def propose(variable: Any, gradient: Any, learning_rate: Any) -> None:
            replica = count.next()
            with tf.control_dependencies(before.get(replica, [])):
                one = hook.nothing(variable, gradient) if leave_out else hook.propose(variable, gradient, learning_rate)
            pending.setdefault(replica, []).append(one)

        def measure(copy: Any, learning_rate: Any, scalars: Any, variables: Any) -> None:
            replica = count.next()
            proposed = pending[replica]
            hook.decide(rows[replica], proposed, learning_rate, scalars)
            free = hook.measure(rows[replica], variables, lambda: proposed)
            before[replica] = [] if free is None else [free]

        def write(variable: Any, place: int) -> None:
            replica = count.next()
            # Only when nobody reads the old weight any more is the update in place; else TensorFlow copies the weight.
            with tf.control_dependencies(before[replica]):
                hook.write(variable, pending[replica][place])
            written.setdefault(replica, []).append(read(variable))

        def end(copy: Any, scalars: Any, position: Any) -> None:
            hook.end_row(rows[count.next()], ring, copy, scalars, position)

        count.reset()
        update(ring.variable, begin, args=(learning_rate, position), group=False)
        for group in hook.groups([variable for _, variable in grads_and_vars]):
            pending.clear()
            for gradient, variable in (grads_and_vars[place] for place in group):
                count.reset()
                update(variable, propose, args=(gradient, learning_rate), group=False)
            variables = [grads_and_vars[place][1] for place in group]
            count.reset()
            update(ring.variable, measure, args=(learning_rate, scalars), kwargs={"variables": variables}, group=False)
            if leave_out:
                continue
            written: dict[int, list[Any]] = {}
            for at, variable in enumerate(variables):
                count.reset()
                update(variable, write, kwargs={"place": at}, group=False)
            before = written
        count.reset()
        update(ring.variable, end, args=(scalars, position), group=False)


class _Counter:
    """Numbers the calls that `extended.update` makes, one per replica."""

    def __init__(self) -> None:
        self._value = -1

    def next(self) -> int:
        self._value += 1
        return self._value

    def reset(self) -> None:
        self._value = -1


def place(hook: Hooked) -> Placement:
    return Placement(hook)


def cover_model(model: Any) -> None:
    pass


def uncover_model(model: Any) -> None:
    pass


def make_state(model: Any, data: Any) -> None:
    """Keras makes slots and metrics while it traces the first step, which TensorFlow then traces once more.

    Both traces stay in memory. Before the step is traced it is made as Keras itself makes it under a distribution
    strategy and on other backends (decision 0223); where that does not go, Keras makes it as ever.
    """
    bare = keras.Model
    if (
        model._distribute_strategy is not None
        or model.run_eagerly
        or type(model).train_step is not bare.train_step
        or not all(layer.built for layer in model._flatten_layers())
    ):
        return
    kind, spec = type(model), getattr(data, "element_spec", None)
    plain = all(isinstance(one, tf.TensorSpec) for one in tree.flatten(spec))
    with suppress(Exception):
        if plain and kind.compute_loss is bare.compute_loss and kind.compute_metrics is bare.compute_metrics:
            model._symbolic_build(data_batch=spec)
        elif not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def still(tensors: Any) -> Any:
    # The tape records; its tensors stay what they are.
    return tensors


def mask(tensor: Any) -> Any:
    return getattr(tensor, "_keras_mask", None)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # AutoGraph would rewrite it from its source, which may not be there or not be what runs.
    left_alone: Callable[..., Any] = tf.autograph.experimental.do_not_convert(function)
    return left_alone


def reachable(tensor: Any) -> bool:
    if tf.executing_eagerly():
        return isinstance(tensor, tf.__internal__.EagerTensor)
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if getattr(tensor, "graph", None) is graph:
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def replica_total() -> Callable[[list[Any]], list[Any]]:
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return lambda values: values
    return lambda values: list(context.all_reduce(tf.distribute.ReduceOp.SUM, values))


# --- state on the device

# What is made while a step is traced is no variable of the step's: a `tf.function` that made one is traced twice.
_MADE: Final = {"trainable": False, "experimental_enable_variable_lifting": False}


def scope(model: Any) -> AbstractContextManager[Any]:
    return (tf.distribute.get_strategy() if model is None else model.distribute_strategy).scope()


def sync(model: Any) -> None:
    pass


def adopt(optimizer: Any, state: Sequence[Any]) -> None:
    pass


def variables(optimizer: Any) -> Sequence[Any]:
    return optimizer.variables


def variable(value: Any, name: str) -> Any:
    with tf.init_scope():
        return tf.Variable(value, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, **_MADE)


def ring(rows: int, width: int) -> Any:
    return tf.Variable(tf.zeros([rows, width]), name="lossguard_ring", aggregation=tf.VariableAggregation.NONE, **_MADE)


def write_row(ring: Any, position: Any, row: Any) -> None:
    # In place with and without XLA, and the one scatter that mirrored and TPU variables have.
    ring.scatter_update(tf.IndexedSlices(row[None], _index(ring, position)))


def read_row(ring: Any, position: Any, columns: int) -> Any:
    return tf.gather(ring, _index(ring, position))[0, :columns]


def _index(ring: Any, position: Any) -> Any:
    return tf.reshape(tf.cast(tf.math.floormod(position, ring.shape[0]), tf.int32), [1])


def take_rows(ring: Any, places: Indices) -> Any:
    return tf.gather(ring, places)
