"""The ranker: a multitask model of the paper's shape, small enough for two CPU cores.

One embedding table for all categorical columns, two DCN-v2 cross layers, LayerNorm, a ReLU stack shared by all tasks,
and one linear head per task. The losses are plainly summed. Layer names are what incidents point at, so they are
stable: `embedding`, `cross_1`, `normalization`, `shared_1` ... `shared_4`, `head_<task>`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from lossguard.demo.features import TASKS

EMBEDDING_WIDTH = 8
SHARED_UNITS = (256, 256, 256, 256)
CROSS_LAYERS = 2


@keras.saving.register_keras_serializable("lossguard.demo")
class DenseGradientEmbedding(layers.Layer):
    """An embedding table whose gradient is dense.

    Keras 3 does not merge the duplicate rows of a sparse gradient: Adagrad then sums the squares of a row's parts
    instead of squaring their sum, and steps once per part. Reading the table through a multiplication makes TensorFlow
    add the parts up first; on 39,000 rows of 8 floats that costs less than the dense layers do.
    """

    def __init__(self, rows: int, width: int = EMBEDDING_WIDTH, **options: Any) -> None:
        super().__init__(**options)
        self.rows, self.width = rows, width

    def build(self, shape: Sequence[int | None]) -> None:
        """Create the table."""
        self.table = self.add_weight(
            name="table", shape=(self.rows, self.width), initializer=keras.initializers.RandomNormal(stddev=0.05)
        )

    def call(self, codes: Any) -> Any:
        """The rows of `codes` [B, C], side by side [B, C * width]."""
        taken = ops.take(ops.multiply(self.table, 1.0), codes, axis=0)
        return ops.reshape(taken, (-1, codes.shape[1] * self.width))

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to build the layer again."""
        return {**super().get_config(), "rows": self.rows, "width": self.width}


def build(rows: int, columns: int, numbers: int, seed: int) -> keras.Model:
    """A fresh ranker.

    Args:
        rows: rows of the embedding table.
        columns: categorical columns.
        numbers: numeric columns.
        seed: of the initial weights.

    Returns:
        A model from `{"categorical": int32 [B, columns], "numeric": float32 [B, numbers]}` to one [B, 1] tensor per
        task: the logit of a binary task, the value of a regression.
    """
    keras.utils.set_random_seed(seed)
    categorical = keras.Input((columns,), dtype="int32", name="categorical")
    numeric = keras.Input((numbers,), dtype="float32", name="numeric")
    embedded = DenseGradientEmbedding(rows, name="embedding")(categorical)
    first = layers.Concatenate(name="features")([embedded, numeric])
    shared = shared_bottom(first, SHARED_UNITS, CROSS_LAYERS)
    heads = {task: layers.Dense(1, name=f"head_{task}")(shared) for task in TASKS}
    return keras.Model({"categorical": categorical, "numeric": numeric}, heads, name="ranker")


def shared_bottom(first: Any, units: Sequence[int], cross_layers: int) -> Any:
    """The layers that all tasks share.

    Args:
        first: the features, [B, F].
        units: of each ReLU layer.
        cross_layers: of DCN-v2, with a LayerNorm behind them; 0 for neither.
    """
    shared = first
    for number in range(1, cross_layers + 1):
        weighted = layers.Dense(first.shape[-1], name=f"cross_{number}")(shared)
        shared = layers.Add(name=f"crossed_{number}")(
            [layers.Multiply(name=f"gated_{number}")([first, weighted]), shared]
        )
    if cross_layers:
        shared = layers.LayerNormalization(name="normalization")(shared)
    for number, width in enumerate(units, 1):
        shared = layers.Dense(width, activation="relu", kernel_initializer="he_normal", name=f"shared_{number}")(shared)
    return shared


def losses() -> dict[str, keras.losses.Loss]:
    """The loss of each task; the total is their plain sum."""
    return {
        task: keras.losses.BinaryCrossentropy(from_logits=True) if kind == "binary" else keras.losses.MeanSquaredError()
        for task, kind in TASKS.items()
    }


def serving(model: keras.Model) -> keras.Model:
    """The model as it is served: the same weights, with the probability of a binary task in the place of its logit."""
    outputs = {
        task: layers.Activation("sigmoid" if kind == "binary" else "linear", name=task)(model.output[task])
        for task, kind in TASKS.items()
    }
    return keras.Model(model.input, outputs, name="ranker_serving")
