"""What is asked of a reader for the samples of a batch: whole objects, or ranges of shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.manifest import Manifest
from headrace.placement import Placement
from headrace_daemon.assemble.layout import lay_out
from headrace_daemon.assemble.requests import requests_of
from headrace_daemon.errors import ObjectMissingError
from headrace_daemon.source.reader import RangeRequest, ReadRequest, release

if TYPE_CHECKING:
    from headrace_daemon.errors import ObjectError

INDICES = np.array([2, 0, 2], dtype=np.uint64)


def objects() -> Manifest:
    base = Manifest.build([(b"a", 3), (b"b", 4), (b"c", 5)])
    sums = np.array([b"x 1", b"x 2", b"x 3"])
    return Manifest(base.sizes, base.offsets, base.names, sums, sums)


def test_objects_are_asked_for_whole_into_their_places() -> None:
    manifest = objects()
    layout = lay_out(manifest.lengths_of(INDICES))
    memory = bytearray(layout.num_bytes)
    told: list[tuple[int, ObjectError]] = []
    with memoryview(memory) as view:
        requests = requests_of(
            manifest,
            INDICES,
            manifest.names_of(INDICES),
            layout,
            view,
            left_out=(1,),
            on_bad=lambda place, error: told.append((place, error)),
        )
        assert [request.name for request in requests] == ["c", "c"]
        assert {(request.checksum, request.version) for request in requests} == {(b"x 3", b"x 3")}
        for number, request in enumerate(requests):
            assert isinstance(request, ReadRequest)
            request.target[:] = b"%d" % number * 5
            assert request.on_bad is not None
            request.on_bad(ObjectMissingError("c", "gone"))
        release(requests)
    assert memory == b"00000" + bytes(59) + bytes(64) + b"11111"
    assert [place for place, _ in told] == [0, 2]


def test_samples_of_shards_are_asked_for_by_ranges() -> None:
    base = Manifest.build([(b"k", 3), (b"k", 4), (b"k", 5)])
    placement = Placement(
        ("f",),
        (0,),
        np.array([[512], [1536], [2560]], dtype=np.uint64),
        np.array([[3], [4], [5]], dtype=np.int64),
        np.zeros((3, 1), dtype=np.uint32),
        np.array([0, 3], dtype=np.uint64),
        Manifest.build([(b"s.tar", 10_240)]),
    )
    manifest = Manifest(base.sizes, base.offsets, base.names, placement=placement)
    layout = lay_out(manifest.lengths_of(INDICES[:2]))
    with memoryview(bytearray(layout.num_bytes)) as view:
        (request,) = requests_of(manifest, INDICES[:2], ["k", "k"], layout, view)
        assert isinstance(request, RangeRequest)
        assert (request.name, request.start, request.stop) == ("s.tar", 512, 2565)
        assert request.on_bad is None
        release([request])
