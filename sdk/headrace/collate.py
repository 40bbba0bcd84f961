"""Per-sample transforms and the default collation of what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .batch import Batch

Sample = dict[str, Any]
Transform = Callable[[Sample], Any]
Collate = Callable[[list[Any]], Any]


def samples_of(batch: Batch) -> list[Sample]:
    """Return the samples as ``{"__key__": name, field: value, …}``."""
    rows = zip(*(batch[field] for field in batch.fields), strict=True)
    return [
        {"__key__": key, **dict(zip(batch.fields, row, strict=True))}
        for key, row in zip(batch.sample_keys, rows, strict=True)
    ]


def apply(
    batch: Batch,
    transform: Transform | Mapping[str, Transform] | None,
    collate_fn: Collate | Mapping[str, Collate] | None,
) -> Any:  # noqa: ANN401 - whatever the user's functions return
    """Return what the loop gets of a batch.

    Neither gets the samples that were left out, and what is made of them has no row for those.
    Either function may be a map of functions by name
    of the stream; streams that are not in it have none.

    Without either function that is the batch itself.  `collate_fn` gets the list of what
    `transform` returned, or of the samples; the loop gets exactly what it returns.  Without it,
    dicts with the same keys become the columns of a batch, tuples of the same length a tuple of
    columns (a named one if they are), and anything else one column.
    """
    if isinstance(transform, Mapping):
        transform = transform.get(batch.meta["stream"])
    if isinstance(collate_fn, Mapping):
        collate_fn = collate_fn.get(batch.meta["stream"])
    if transform is None and collate_fn is None:
        return batch
    batch = batch.present()
    values: list[Any] = samples_of(batch)
    if transform is not None:
        values = _transformed(values, transform)
    if collate_fn is not None:
        return collate_fn(values)
    if not values:
        return batch
    first = values[0]
    if isinstance(first, dict) and all(
        isinstance(value, dict) and value.keys() == first.keys() for value in values
    ):
        names = [name for name in first if name != "__key__"]
        return batch.with_columns(
            {name: stack([value[name] for value in values]) for name in names}
        )
    if isinstance(first, tuple) and all(
        isinstance(value, tuple) and len(value) == len(first) for value in values
    ):
        stacked = [stack(list(column)) for column in zip(*values, strict=True)]
        return type(first)(*stacked) if hasattr(first, "_fields") else tuple(stacked)
    return stack(values)


def _transformed(samples: list[Sample], transform: Transform) -> list[Any]:
    """Return what a transform makes of samples; its error gets a note that names the sample."""
    made: list[Any] = []
    keys = [sample["__key__"] for sample in samples]  # the transform may change its sample
    try:
        for sample in samples:
            made.append(transform(sample))  # noqa: PERF401 - its length says where it stopped
    except Exception as error:
        error.add_note(f"in transform= of sample {keys[len(made)]!r}")
        raise
    return made


def stack(values: Sequence[Any]) -> Any:  # noqa: ANN401 - a tensor or the list
    """Return a column as one tensor where that is possible without loss, else as a list.

    Tensors and arrays of one shape and dtype are stacked; numbers become a 1-D tensor (integers
    int64, floats float64, as in torch's own collation); the rest stays as it is.
    """
    kind = type(values[0])
    if any(type(value) is not kind for value in values):
        return list(values)
    if issubclass(kind, torch.Tensor):
        shapes = {(value.shape, value.dtype) for value in values}
        return torch.stack(list(values)) if len(shapes) == 1 else list(values)
    if issubclass(kind, np.ndarray | np.generic):
        shapes = {(value.shape, value.dtype) for value in values}
        dtype = values[0].dtype
        # What torch has no type for: text, objects, numbers above 64 bits.
        if len(shapes) == 1 and dtype.kind in "biuf" and dtype.itemsize <= 8:
            return torch.from_numpy(np.stack(list(values)))
        return list(values)
    if kind is bool or (kind is int and all(-(2**63) <= value < 2**63 for value in values)):
        return torch.tensor(values)
    if kind is float:
        return torch.tensor(values, dtype=torch.float64)
    return list(values)
