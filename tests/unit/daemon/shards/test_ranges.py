"""Ranges of samples: each value that is wanted once, in its place, and little else."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.assemble.layout import lay_out
from headrace_daemon.errors import ObjectUnreadableError
from headrace_daemon.source.reader import release
from headrace_daemon.source.shards import ranges
from tests.support.sharded import placed, value_in

GAP, LIMIT = 60, 500

SHARDS = st.lists(
    st.lists(st.tuples(st.integers(-1, 300), st.integers(-1, 40)), min_size=1, max_size=9),
    min_size=1,
    max_size=4,
)


@given(shards=SHARDS, gap=st.sampled_from([10, 70]), data=st.data())
def test_each_value_that_is_wanted_comes_once_into_its_place(
    shards: list[list[tuple[int, int]]], gap: int, data: st.DataObject
) -> None:
    manifest, contents = placed(shards, gap=gap)
    placement = manifest.placement
    assert placement is not None
    samples = data.draw(st.lists(st.integers(0, len(manifest) - 1), min_size=1, max_size=20))
    count = len(samples)
    left_out = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    filled = np.array(data.draw(st.lists(st.booleans(), min_size=2 * count, max_size=2 * count)))
    indices = np.array(samples, dtype=np.uint64)
    layout = lay_out(manifest.lengths_of(indices))
    memory = bytearray(b"?" * layout.num_bytes)
    told: list[int] = []
    with mock.patch.multiple(ranges, GAP_BYTES=GAP, RANGE_BYTES=LIMIT), memoryview(memory) as view:
        requests = ranges.ranges_of(
            placement,
            indices,
            layout.offsets,
            view,
            left_out=left_out,
            filled=filled,
            on_bad=lambda row, error: told.append(row),
        )
        for request in requests:
            content = contents[request.name]
            assert request.object_bytes == len(content)
            at = request.start
            for number, (start, target) in enumerate(request.places):
                assert at <= start <= at + (GAP if number else 0)
                at = start + len(target)
                target[:] = content[start:at]
            assert at == request.stop
            assert at - request.start <= LIMIT or len(request.places) == 1
            assert request.on_bad is not None
            request.on_bad(ObjectUnreadableError(request.name, "bad"))
        release(requests)
    wanted = []
    lengths = placement.lengths[indices].T.ravel().tolist()
    for number, (offset, length) in enumerate(zip(layout.offsets.tolist(), lengths, strict=True)):
        column, row = divmod(number, count)
        value = bytes(memory[offset : offset + max(length, 0)])
        if row in left_out or filled[number] or length <= 0:
            assert value == b"?" * len(value)
        else:
            assert value == value_in(manifest, samples[row], column)
            wanted.append(row)
    assert set(told) == set(wanted)


def test_neighbours_come_in_one_range_up_to_its_length() -> None:
    manifest, _ = placed([[(100,)] * 12], gap=10)
    placement = manifest.placement
    assert placement is not None
    indices = np.arange(12, dtype=np.uint64)[::-1].copy()
    layout = lay_out(manifest.lengths_of(indices))
    with mock.patch.object(ranges, "RANGE_BYTES", 430):
        requests = ranges.ranges_of(
            placement, indices, layout.offsets, memoryview(bytearray(layout.num_bytes))
        )
    assert [(request.start, request.stop) for request in requests] == [
        (10, 440),
        (450, 880),
        (890, 1320),
    ]
    assert all(request.on_bad is None for request in requests)
