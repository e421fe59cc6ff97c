"""Sparse gradients (`tf.IndexedSlices`), which Keras 3 hands on as they come: a row looked up twice stands twice.

Here rows are added up first, with static shapes, so that a stat means the same for sparse and dense layers.
"""

from typing import Any, NamedTuple

import tensorflow as tf


class Rows(NamedTuple):
    """Distinct rows of a table, padded to the length they came with by rows of zeros at index 0.

    Attributes:
        indices: [n].
        values: [n, ...].
        real: [n] bool, False on padding.
    """

    indices: Any
    values: Any
    real: Any

    def of(self, table: Any) -> Any:
        """These rows of a dense table, zeros on padding."""
        rows = tf.gather(table, self.indices)
        mask = tf.reshape(self.real, [-1] + [1] * (len(table.shape) - 1))
        return tf.where(mask, rows, tf.zeros_like(rows))


def merged(slices: tf.IndexedSlices) -> Rows:
    """The slices with equal indices added up.

    No `tf.unique`: its output shape depends on the data, which accelerators do not compile.
    """
    indices = tf.reshape(slices.indices, [-1])
    count = tf.shape(indices)[0]
    order = tf.argsort(indices, stable=True)
    ordered = tf.gather(indices, order)
    first = tf.concat([tf.ones([1], tf.bool), ordered[1:] != ordered[:-1]], 0)[:count]
    segment = tf.cumsum(tf.cast(first, tf.int32)) - 1
    values = tf.math.unsorted_segment_sum(tf.gather(slices.values, order), segment, count)
    real = tf.range(count) < tf.reduce_sum(tf.cast(first, tf.int32))
    distinct = tf.where(real, tf.math.unsorted_segment_max(ordered, segment, count), 0)
    return Rows(distinct, values, real)
