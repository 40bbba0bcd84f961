"""How samples are tiled by ranges: several streams, gaps, repeats, and what is left out."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.manifest import Manifest
from headrace.placement import ABSENT, Placement
from headrace_daemon.assemble.layout import lay_out
from headrace_daemon.errors import ObjectMissingError
from headrace_daemon.source.reader import release
from headrace_daemon.source.shards import ranges
from headrace_daemon.source.shards.ranges import GAP_BYTES, ranges_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace_daemon.errors import ObjectError
    from headrace_daemon.source.reader import RangeRequest


class Case(NamedTuple):
    """Samples that lie in shards, and what is there."""

    placement: Placement
    shards: list[bytes]


def case_of(
    lengths: Sequence[Sequence[int]],
    *,
    gaps: Sequence[int] = (512,),
    per_shard: int = 4,
    num_streams: int = 1,
    order: Sequence[int] | None = None,
) -> Case:
    """Return samples whose values lie one after the other, field by field in their stream.

    Args:
        lengths: Of the values of each sample.
        gaps: Bytes before each value, over and over.
        per_shard: Samples in each shard; the shards of the streams are shifted by one another.
        num_streams: Field f is in stream f modulo this.
        order: In which samples lie in the shards; that of the samples if not given.
    """
    n, num_fields = len(lengths), len(lengths[0])
    starts = np.zeros((n, num_fields), dtype=np.uint64)
    shards = np.zeros((n, num_streams), dtype=np.uint32)
    blobs: list[bytearray] = []
    number = 0
    for stream in range(num_streams):
        for place, row in enumerate(order or range(n)):
            if (place + stream) % per_shard == 0 or not place:
                blobs.append(bytearray())
            shards[row, stream] = len(blobs) - 1
            for field in range(stream, num_fields, num_streams):
                blobs[-1] += bytes(gaps[number % len(gaps)])
                starts[row, field] = len(blobs[-1])
                blobs[-1] += bytes([1 + (row * 7 + field * 3) % 255]) * max(lengths[row][field], 0)
                number += 1
    entries = [(f"{row}.tar".encode(), len(blob)) for row, blob in enumerate(blobs)]
    base = Manifest.build(entries)
    checksums = np.array([b"xxhash %d" % row for row in range(len(blobs))], dtype=np.bytes_)
    table = Manifest(base.sizes, base.offsets, base.names, checksums, checksums)
    placement = Placement(
        tuple(f"f{field}" for field in range(num_fields)),
        tuple(field % num_streams for field in range(num_fields)),
        starts,
        np.array(lengths, dtype=np.int64),
        shards,
        np.array([0, n], dtype=np.uint64),
        table,
    )
    return Case(placement, [bytes(blob) for blob in blobs])


def read(case: Case, indices: Sequence[int], *, left_out: Sequence[int] = ()) -> list[RangeRequest]:
    """Ask for samples, do what a reader does, and check what came."""
    wanted = np.array(indices, dtype=np.uint64)
    lengths = case.placement.lengths[wanted].T
    layout = lay_out(lengths)
    memory = bytearray(b"\xee" * layout.num_bytes)
    view = memoryview(memory)
    requests = ranges_of(case.placement, wanted, layout.offsets, view, left_out=left_out)
    touched = bytearray(len(memory))
    shown = []
    for request in requests:
        number = int(request.name.removesuffix(".tar"))
        blob = case.shards[number]
        assert request.object_bytes == len(blob)
        assert request.checksum == request.version == b"xxhash %d" % number
        assert 0 <= request.start < request.stop <= len(blob)
        assert request.places[0].start == request.start, "no byte before the first value"
        at = request.start
        for start, target in request.places:
            assert len(target), "nothing is asked for a value without bytes"
            assert 0 <= start - at <= GAP_BYTES
            target[:] = blob[start : start + len(target)]
            at = start + len(target)
            offset = (
                np.frombuffer(target, np.uint8).ctypes.data
                - np.frombuffer(view, np.uint8).ctypes.data
            )
            assert not any(touched[offset : offset + len(target)]), "two for one place"
            touched[offset : offset + len(target)] = b"\1" * len(target)
        assert request.stop == at, "no byte behind the last value"
        shown.append(request)
    count = len(indices)
    value = 0
    for field in range(lengths.shape[0]):
        for place in range(count):
            offset, length = int(layout.offsets[value]), max(int(lengths[field, place]), 0)
            is_read = place not in left_out
            assert touched[offset : offset + length] == bytes([is_read]) * length
            row = indices[place]
            byte = 1 + (row * 7 + field * 3) % 255 if is_read else 0xEE
            assert memory[offset : offset + length] == bytes([byte]) * length
            value += 1
    assert sum(touched) == sum(
        max(length, 0)
        for place, column in enumerate(lengths.T.tolist())
        for length in column
        if place not in left_out
    ), "the padding stays as it was"
    release(requests)
    view.release()  # fails if a request kept a view
    return shown


def spans(requests: Sequence[RangeRequest]) -> list[tuple[str, int, int]]:
    return [(request.name, request.start, request.stop) for request in requests]


@given(data=st.data())
def test_places_tile_exactly_what_is_wanted(data: st.DataObject) -> None:
    num_fields, num_streams = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    size = st.one_of(st.just(ABSENT), st.integers(0, 300))
    rows = st.lists(size, min_size=num_fields, max_size=num_fields)
    lengths = data.draw(st.lists(rows, min_size=1, max_size=12))
    n = len(lengths)
    gaps = st.sampled_from([0, 512, 1024, GAP_BYTES, GAP_BYTES + 1, 9000])
    case = case_of(
        lengths,
        gaps=data.draw(st.lists(gaps, min_size=1, max_size=5)),
        per_shard=data.draw(st.integers(1, n)),
        num_streams=min(num_streams, num_fields),
        order=data.draw(st.permutations(range(n))),
    )
    # With repeats: fillers of a batch are samples that were there before.
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=16))
    left_out = data.draw(st.sets(st.integers(0, len(indices) - 1)))
    requests = read(case, indices, left_out=sorted(left_out))
    # Ranges of one shard that could be one are one, where no value is wanted twice.
    if len(set(indices)) == len(indices):
        for one, following in pairwise(requests):
            if one.name == following.name:
                assert following.start - one.stop > GAP_BYTES


def test_neighbours_come_in_one_range_whatever_their_order() -> None:
    case = case_of([[10, 20]] * 8)
    assert spans(read(case, [2, 0, 1])) == [("0.tar", 512, 3 * 2 * 512 + 90)]
    assert [name for name, *_ in spans(read(case, [5, 1, 4, 0]))] == ["0.tar", "1.tar"]
    assert len(read(case, range(8))) == 2


@pytest.mark.parametrize(("gap", "number"), [(0, 1), (GAP_BYTES, 1), (GAP_BYTES + 1, 3)])
def test_a_range_ends_before_a_large_gap(gap: int, number: int) -> None:
    assert len(read(case_of([[10]] * 3, gaps=(gap,)), range(3))) == number


def test_what_lies_between_and_is_not_wanted_counts_as_a_gap() -> None:
    small, large = [[9], [GAP_BYTES - 1024], [9]], [[9], [GAP_BYTES - 1023], [9]]
    assert len(read(case_of(small), [0, 2])) == 1
    assert len(read(case_of(large), [0, 2])) == 2


def test_a_long_range_ends_behind_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 3000)
    case = case_of([[1000]] * 9, gaps=(0,), per_shard=9)
    assert spans(read(case, range(9))) == [("0.tar", at, at + 3000) for at in (0, 3000, 6000)]
    huge = case_of([[1], [9000], [1]], gaps=(0,), per_shard=9)
    assert [request.num_bytes for request in read(huge, range(3))] == [1, 9000, 1]


def test_a_sample_that_comes_twice_is_read_into_both_places() -> None:
    case = case_of([[100, 5]] * 3)
    requests = read(case, [1, 1, 2, 1])
    assert sum(request.num_bytes for request in requests) < 3 * 2 * (100 + 5 + 512 + 512)


@pytest.mark.parametrize("lengths", [[[0, ABSENT]], [[ABSENT, ABSENT]], [[0, 0]]])
def test_nothing_is_asked_for_nothing(lengths: list[list[int]]) -> None:
    assert read(case_of(lengths * 3), [0, 2, 1]) == []
    assert read(case_of([[5]] * 3), [0, 2], left_out=[0, 1]) == []


def test_streams_are_read_from_their_own_shards() -> None:
    case = case_of([[10, 20]] * 4, per_shard=2, num_streams=2)
    names = [name for name, *_ in spans(read(case, [0, 1, 2]))]
    assert names == ["0.tar", "1.tar", "2.tar", "3.tar"]


def test_each_row_of_a_range_is_told_once_of_what_is_wrong_with_it() -> None:
    case = case_of([[10, 20, 30]] * 6, per_shard=3)
    told: list[tuple[int, ObjectError]] = []
    indices = np.array([4, 1, 0, 5], dtype=np.uint64)
    layout = lay_out(case.placement.lengths[indices].T)
    view = memoryview(bytearray(layout.num_bytes))
    requests = ranges_of(
        case.placement,
        indices,
        layout.offsets,
        view,
        left_out=(3,),
        on_bad=lambda row, error: told.append((row, error)),
    )
    error = ObjectMissingError("1.tar", "gone")
    for request in requests:
        assert request.on_bad is not None
        request.on_bad(error)
    assert told == [(1, error), (2, error), (0, error)]
    assert all(request.on_bad is None for request in read(case, [0, 3]))
