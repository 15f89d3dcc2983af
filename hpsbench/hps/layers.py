"""Keras layers that look embeddings up in the parameter server.

They are layers of `tf.keras`: of Keras 3, or of `tf_keras` where TF_USE_LEGACY_KERAS says so.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hpsbench.errors import HpsError
from hpsbench.hps.op import operations

_COMBINERS = ("mean", "sum", "sqrtn")


class _ServedLayer(tf.keras.layers.Layer):  # type: ignore[misc]
    """What the layers share: the model they ask, and the configuration to begin with."""

    def __init__(
        self,
        model_name: str,
        emb_vec_dtype: Any,
        ps_config_file: str,
        global_batch_size: int,
        **kwargs: Any,
    ) -> None:
        # Rows have their own type under any dtype policy, and so have the weights of sparse ids.
        super().__init__(**{"autocast": False, **kwargs})
        if tf.as_dtype(emb_vec_dtype) not in (tf.float32, tf.float16):
            raise HpsError(
                f"emb_vec_dtype is {tf.as_dtype(emb_vec_dtype).name}",
                hint="embedding vectors are float32, or rounded to float16: pass one of these",
            )
        self.model_name = str(model_name)
        self.emb_vec_dtype = tf.as_dtype(emb_vec_dtype)
        self.ps_config_file = str(ps_config_file)
        self.global_batch_size = _whole("global_batch_size", global_batch_size, 1)
        operations()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the same layer again."""
        return {
            **super().get_config(),
            "model_name": self.model_name,
            "emb_vec_dtype": self.emb_vec_dtype.name,
            "ps_config_file": self.ps_config_file,
            "global_batch_size": self.global_batch_size,
        }


class _TableLayer(_ServedLayer):
    """A layer that asks one table."""

    def __init__(
        self,
        model_name: str,
        table_id: int,
        emb_vec_size: int,
        emb_vec_dtype: Any,
        ps_config_file: str = "",
        global_batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name, emb_vec_dtype, ps_config_file, global_batch_size, **kwargs)
        self.table_id = _whole("table_id", table_id, 0)
        self.emb_vec_size = _whole("emb_vec_size", emb_vec_size, 1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the same layer again."""
        return {
            **super().get_config(),
            "table_id": self.table_id,
            "emb_vec_size": self.emb_vec_size,
        }

    def _rows(self, ids: Any, dtype: Any) -> Any:
        return operations().hps_lookup(
            ids=ids,
            model_name=self.model_name,
            table_id=self.table_id,
            emb_vec_size=self.emb_vec_size,
            ps_config_file=self.ps_config_file,
            global_batch_size=self.global_batch_size,
            Trows=dtype,
        )

    def _clipped_rows(self, ids: Any, max_norm: float | None) -> Any:
        """Return float32 rows: rounding comes after all that is computed."""
        rows = self._rows(ids, tf.float32)
        return rows if max_norm is None else tf.clip_by_norm(rows, max_norm, axes=[-1])


@tf.keras.utils.register_keras_serializable(package="hpsbench")
class LookupLayer(_TableLayer):
    """The rows of dense ids, as `tf.nn.embedding_lookup` gives them.

    `emb_vec_dtype` is tf.float32, or tf.float16 for rows that are rounded to the nearest, ties to
    even, as tf.cast does: that is done on the way to the output. `ps_config_file` initialises the
    process when the layer first runs, unless `Init` did; to make, trace and export the layer, it
    need not exist.
    """

    def call(self, ids: Any, max_norm: float | None = None) -> Any:
        """Return emb_vec_dtype[*ids.shape, emb_vec_size] for `ids`, int32 or int64, of rank 1 up.

        A key that the table lacks gets the table's default. Rows longer than `max_norm` are
        clipped to it.
        """
        if max_norm is None:
            return self._rows(_integers(ids), self.emb_vec_dtype)
        return tf.cast(self._clipped_rows(_integers(ids), max_norm), self.emb_vec_dtype)


@tf.keras.utils.register_keras_serializable(package="hpsbench")
class SparseLookupLayer(_TableLayer):
    """The combined rows of sparse ids, as `tf.nn.embedding_lookup_sparse` gives them.

    The arguments are those of `LookupLayer`; with tf.float16, the combined rows are rounded.
    """

    def call(
        self,
        sp_ids: Any,
        sp_weights: Any,
        name: str | None = None,
        combiner: str | None = None,
        max_norm: float | None = None,
    ) -> Any:
        """Return emb_vec_dtype[batch, emb_vec_size] for a SparseTensor `sp_ids` [batch, hotness].

        `sp_weights` is None or a SparseTensor of the same indices. `combiner` is mean (the
        default), sum or sqrtn. Rows are clipped to `max_norm` before they are combined.
        """
        if combiner is None:
            combiner = "mean"
        if combiner not in _COMBINERS:
            raise HpsError(f"combiner is {combiner!r}", hint="pass " + ", ".join(_COMBINERS))
        for argument, value in (("sp_ids", sp_ids), ("sp_weights", sp_weights)):
            if not (isinstance(value, tf.SparseTensor) or (value is None and value is sp_weights)):
                raise HpsError(
                    f"{argument} is a {type(value).__name__}", hint="pass a SparseTensor"
                )
        with tf.name_scope(name or "hps_sparse_lookup"):
            # The order of operations is that of TensorFlow, so that sums round alike.
            segment_ids = sp_ids.indices[:, 0]
            ids, idx = tf.unique(_integers(sp_ids.values))
            rows = self._clipped_rows(ids, max_norm)
            if sp_weights is None:
                combine = {
                    "sum": tf.sparse.segment_sum,
                    "mean": tf.sparse.segment_mean,
                    "sqrtn": tf.sparse.segment_sqrt_n,
                }[combiner]
                combined = combine(rows, idx, segment_ids)
            else:
                weights = sp_weights.values
                combined = _weighted(tf.gather(rows, idx), weights, segment_ids, combiner)
            return tf.cast(combined, self.emb_vec_dtype)


@tf.keras.utils.register_keras_serializable(package="hpsbench")
class MultiLookupLayer(_ServedLayer):
    """The rows of several dense id tensors, each from its table, in one operation.

    `table_ids` and `emb_vec_sizes` have one entry per input; the rest is as in `LookupLayer`.
    """

    def __init__(
        self,
        model_name: str,
        table_ids: Sequence[int],
        emb_vec_sizes: Sequence[int],
        emb_vec_dtype: Any,
        ps_config_file: str = "",
        global_batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name, emb_vec_dtype, ps_config_file, global_batch_size, **kwargs)
        self.table_ids = tuple(_whole("table_ids", i, 0) for i in table_ids)
        self.emb_vec_sizes = tuple(_whole("emb_vec_sizes", n, 1) for n in emb_vec_sizes)
        if not self.table_ids or len(self.table_ids) != len(self.emb_vec_sizes):
            raise HpsError(
                f"{len(self.table_ids)} table_ids, and {len(self.emb_vec_sizes)} emb_vec_sizes",
                hint="pass one of each per input, and at least one",
            )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the same layer again."""
        return {
            **super().get_config(),
            "table_ids": list(self.table_ids),
            "emb_vec_sizes": list(self.emb_vec_sizes),
        }

    def call(self, ids: Sequence[Any]) -> list[Any]:
        """Return emb_vec_dtype[*ids[i].shape, emb_vec_sizes[i]] for each i.

        All ids are int32, or all int64.
        """
        if len(ids) != len(self.table_ids):
            raise HpsError(
                f"{len(ids)} id tensors, and {len(self.table_ids)} table_ids",
                hint="pass one id tensor for each of table_ids",
            )
        return list(
            operations().hps_multi_lookup(
                ids=[_integers(tensor) for tensor in ids],
                model_name=self.model_name,
                table_ids=list(self.table_ids),
                emb_vec_sizes=list(self.emb_vec_sizes),
                ps_config_file=self.ps_config_file,
                global_batch_size=self.global_batch_size,
                Trows=self.emb_vec_dtype,
            )
        )


def _weighted(rows: Any, weights: Any, segment_ids: Any, combiner: str) -> Any:
    if weights.dtype != rows.dtype:
        weights = tf.cast(weights, rows.dtype)
    weights = weights[:, tf.newaxis]
    total = tf.math.segment_sum(rows * weights, segment_ids)
    if combiner == "sum":
        return total
    if combiner == "mean":
        return tf.math.divide_no_nan(total, tf.math.segment_sum(weights, segment_ids))
    squares = tf.math.segment_sum(tf.pow(weights, 2), segment_ids)
    return tf.math.divide_no_nan(total, tf.sqrt(squares))


def _integers(ids: Any) -> Any:
    ids = tf.convert_to_tensor(ids)
    if ids.dtype in (tf.int32, tf.int64):
        return _unfolded(ids)
    problem = f"ids are {ids.dtype.name}"
    hint = "pass int32 or int64 ids: keys beyond 2^24 would be lost in floats"
    if ids.dtype.is_floating and not tf.executing_eagerly():
        # Keras 3 also traces a subclassed model for inputs of its own type, float32, when it
        # exports the model. So that can be traced, and fails when it is run.
        refuse = tf.raw_ops.Assert(condition=False, data=[f"{problem}; {hint}"])
        with tf.control_dependencies([refuse]):
            return tf.cast(ids, tf.int64)
    raise HpsError(problem, hint=hint)


def _unfolded(ids: Any) -> Any:
    """Keep TensorFlow from looking constant ids up once and for all: rows can be updated."""
    if tf.executing_eagerly() or not isinstance(ids, tf.Tensor):
        return ids
    waiting = [ids.op]
    seen = set()
    while waiting:
        op = waiting.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        if not op.inputs and op.type != "Const":
            return ids
        waiting.extend(tensor.op for tensor in op.inputs)
    # TensorFlow folds whatever depends on constants alone, but no random number, here of [0, 1).
    zero, one = tf.zeros((), ids.dtype), tf.ones((), ids.dtype)
    nothing = tf.raw_ops.RandomUniformInt(
        shape=tf.zeros((0,), tf.int32), minval=zero, maxval=one, seed=1, seed2=1
    )
    return ids + nothing


def _whole(name: str, value: Any, low: int) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        # Programs that read their sizes from a file may have floats for them.
        whole = int(value) if isinstance(value, float) and value.is_integer() else low - 1
    if whole < low:
        raise HpsError(f"{name} is {value!r}", hint=f"pass a whole number from {low}")
    return whole
