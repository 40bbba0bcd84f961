"""Batches: what a trainer gets from one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RemoteProtocolError
from .plans.cursor import Cursor
from .plans.flags import Flag
from .protocol import Payload
from .protocol import messages as m

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray


class Batch:
    """The samples of one step of one rank, by column.

    ``len(batch)`` is the number of samples, fillers included; iterating yields samples as
    ``(name, bytes)``, or ``(name, {field: value})`` where there is more than the field ``data``.
    It is no `Sequence` and no `Mapping`, so that torch leaves it whole.
    """

    __slots__ = ("_columns", "_cursor", "flags", "indices", "meta", "sample_keys")

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        *,
        sample_keys: list[str],
        indices: NDArray[np.uint64],
        flags: NDArray[np.uint8],
        meta: dict[str, Any],
        cursor: Cursor | dict[str, Any],
    ) -> None:
        self._columns = dict(columns)
        self._cursor = cursor
        self.sample_keys = sample_keys
        """Names of the samples; their indices as text where the daemon sends no names."""
        self.indices = indices
        """u64[n], indices of the samples in the manifest (of its own source, where a part has
        one)."""
        self.flags = flags
        """u8[n], a sum of bits: 1 = filler, 2 = filler of a whole step, 4 = above the budget,
        8 = left out (`headrace.plans.engine.Flag`).  Read-only, as `indices`."""
        self.meta = meta
        """What the plan says of the batch.

        ``epoch`` and ``step`` in it; ``global_step``, counted from the start of the run;
        ``stream``, the name of its part of a composition, else empty; ``role``, which is
        ``"extra"`` for the extras of `Interleaved` and ``"main"`` for all else; in a composition
        ``part_epoch`` and ``part_step``; and what the plan adds, such as ``height``.
        """

    @property
    def cursor(self) -> Cursor:
        """Where the stream stands after this batch."""
        if not isinstance(self._cursor, Cursor):
            self._cursor = Cursor.from_state(self._cursor)
        return self._cursor

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, field: str) -> Any:  # noqa: ANN401 - a list or whatever was made of it
        try:
            return self._columns[field]
        except KeyError:
            raise KeyError(
                f"{field!r}: this batch has the field(s) {', '.join(self._columns)}"
            ) from None

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return samples_of(self.sample_keys, self._columns)

    def __repr__(self) -> str:
        where = f"epoch={self.meta.get('epoch')} step={self.meta.get('step')}"
        return f"<Batch {where} samples={len(self)} fields={','.join(self._columns)}>"

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> Batch:
        """Return a batch of the same samples with other columns."""
        return Batch(
            columns,
            sample_keys=self.sample_keys,
            indices=self.indices,
            flags=self.flags,
            meta=self.meta,
            cursor=self._cursor,
        )

    def present(self) -> Batch:
        """Return the batch without the samples that were left out: itself if there are none."""
        is_here = (self.flags & Flag.HOLE) == 0
        if is_here.all():
            return self
        rows = np.flatnonzero(is_here).tolist()
        return Batch(
            {name: [column[row] for row in rows] for name, column in self._columns.items()},
            sample_keys=[self.sample_keys[row] for row in rows],
            indices=self.indices[is_here],
            flags=self.flags[is_here],
            meta=self.meta,
            cursor=self._cursor,
        )

    def pin_memory(self) -> Batch:
        """Return a batch whose tensors are in pinned memory: what ``pin_memory=True`` asks for.

        Bytes stay as they are: only tensors can be pinned.
        """
        from torch.utils.data._utils.pin_memory import pin_memory

        return self.with_columns(
            {name: pin_memory(column) for name, column in self._columns.items()}  # type: ignore[no-untyped-call]
        )


def samples_of(
    keys: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, Any]]:
    """Return samples as users know them.

    ``(name, bytes)`` where the only field is ``data``, else ``(name, {field: bytes})``.
    """
    if list(columns) == ["data"]:
        return zip(keys, columns["data"], strict=True)
    return (
        (key, {field: values[row] for field, values in columns.items()})
        for row, key in enumerate(keys)
    )


def unpack(received: Payload) -> Batch:
    """Return a batch with its bytes copied out of the buffer they were received into."""
    header = received.header
    assert isinstance(header, m.Batch)
    values = columns(header, received.payload)
    meta = {
        **header.meta,
        "epoch": header.epoch,
        "step": header.step,
        "global_step": header.global_step,
        "stream": header.stream,
        "role": header.role,
    }
    indices = np.frombuffer(header.ids, dtype="<u8")
    return Batch(
        values,
        sample_keys=list(map(str, indices.tolist()) if header.keys is None else header.keys),
        indices=indices,
        flags=np.frombuffer(header.flags, dtype=np.uint8),
        meta=meta,
        cursor=header.cursor,
    )


def columns(header: m.Header, payload: memoryview) -> dict[str, list[bytes | None]]:
    """Return copies of all values of a payload by field; None where a sample has none.

    Raises:
        RemoteProtocolError: If the header does not fit itself or the payload.
    """
    _check(header, payload)
    offsets = np.frombuffer(header.off, dtype="<u8").tolist()
    lengths = np.frombuffer(header.lengths, dtype="<u8").tolist()
    values = [
        None if length == m.MISSING else bytes(payload[offset : offset + length])
        for offset, length in zip(offsets, lengths, strict=True)
    ]
    count = header.n
    return {
        field: values[number * count : (number + 1) * count]
        for number, field in enumerate(header.fields)
    }


def _check(header: m.Header, payload: memoryview) -> None:
    """Refuse a header whose columns contradict each other: slicing would not notice."""
    n, num_values = header.n, header.n * len(header.fields)
    lengths_wanted = {"off": 8 * num_values, "len": 8 * num_values}
    lengths_found = {"off": len(header.off), "len": len(header.lengths)}
    if isinstance(header, m.Batch):
        lengths_wanted |= {"ids": 8 * n, "flags": n}
        lengths_found |= {"ids": len(header.ids), "flags": len(header.flags)}
    if header.keys is not None:
        lengths_wanted["keys"] = n
        lengths_found["keys"] = len(header.keys)
    if lengths_found != lengths_wanted:
        raise RemoteProtocolError(
            f"a header of {n} samples has columns of {lengths_found} where {lengths_wanted} are due"
        )
    offsets = np.frombuffer(header.off, dtype="<u8")
    lengths = np.frombuffer(header.lengths, dtype="<u8")
    here = lengths != np.uint64(m.MISSING)
    size = np.uint64(len(payload))
    if np.any((lengths > size) & here) or np.any((offsets > size - lengths) & here):
        raise RemoteProtocolError(f"a value lies outside its payload of {len(payload)} bytes")
