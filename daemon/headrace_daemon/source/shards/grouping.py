"""Grouping as they come: from the members of a shard that is streamed to its samples.

The samples are those of `samples.list_samples`, in the same order and with the same values: a run
of adjacent members with one key, of which the declared fields are kept; what has none of them is no
sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.errors import MemberError
from headrace.members import split_name

from ...errors import SamplesError, ShardRefusedError

if TYPE_CHECKING:
    from headrace.shards import Shards

    from .stream import StreamedMember

OVERHEAD_BYTES: Final = 512
"""What a sample takes up besides its values, about: so that tiny ones count as well."""


class StreamedSample(NamedTuple):
    """A sample of a shard that is streamed."""

    number: int
    """Its place in the shard."""

    key: str
    values: list[bytes | bytearray | None]
    """By field; None for one that it does not have."""

    held_bytes: int
    """What it takes up in memory."""


class Grouper:
    """Groups the members of one shard.

    Args:
        source: Says what is a sample.
        shard: Name of the shard.
        max_sample_bytes: The largest sample that is taken.
    """

    def __init__(self, source: Shards, shard: str, max_sample_bytes: int) -> None:
        assert source.fields is not None, "streamed sources declare them"
        self._source = source
        self._shard = shard
        self._max_sample_bytes = max_sample_bytes
        self._numbers = {field: number for number, field in enumerate(source.fields)}
        self._number = 0
        # The sample that has begun: its key, its values by field, and all of its fields.
        self._key: str | None = None
        self._values: dict[int, bytes | bytearray] = {}
        self._fields: set[str] = set()
        self.open_bytes = 0
        """What the sample that has begun takes up."""

    def add(self, member: StreamedMember) -> StreamedSample | None:
        """Take the next member; return the sample before it, if that is complete now.

        Raises:
            SamplesError: If that sample lacks a field, or the member is one that it has already.
            ShardRefusedError: If the sample is larger than the limit.
        """
        split = split_name(member.name, lowercase=self._source.lowercase)
        if split is None:
            return None
        done = None
        if split.key != self._key:
            done = self.finish()
            self._key = split.key
        if split.field in self._fields:
            error = MemberError(member.name, key=split.key, field=split.field, shard=self._shard)
            raise SamplesError(f"{self._source.location} {self._shard}", str(error))
        self._fields.add(split.field)
        number = self._numbers.get(split.field)
        if number is not None:
            self._values[number] = member.data
            self.open_bytes += len(member.data) + (len(self._values) == 1) * OVERHEAD_BYTES
            self._check_size(split.key)
        return done

    def _check_size(self, key: str) -> None:
        num_bytes = self.open_bytes - OVERHEAD_BYTES
        if num_bytes > self._max_sample_bytes:
            raise ShardRefusedError(
                self._shard,
                f"sample {key!r}, number {self._number} of the shard, has {num_bytes} bytes at "
                f"least, max_sample_bytes is {self._max_sample_bytes}: raise that, or leave out a "
                "field",
                member=key,
            )

    def finish(self) -> StreamedSample | None:
        """Return the sample that has begun, if it is one: no member of it follows.

        Raises:
            SamplesError: If it lacks a field.
        """
        key, values, held_bytes = self._key, self._values, self.open_bytes
        self._key, self._values, self._fields, self.open_bytes = None, {}, set(), 0
        if key is None or not values:
            return None
        if self._source.missing == "error" and len(values) < len(self._numbers):
            field = next(name for name, number in self._numbers.items() if number not in values)
            raise SamplesError(
                f"{self._source.location} {self._shard}",
                f"sample {key!r} of shard {self._shard!r} lacks field {field!r}: name the fields "
                "that all samples have with fields=, or say what such a sample has with "
                "missing='none' or missing='empty'",
            )
        absent = b"" if self._source.missing == "empty" else None
        row = [values.get(number, absent) for number in range(len(self._numbers))]
        self._number += 1
        return StreamedSample(self._number - 1, key, row, held_bytes)
