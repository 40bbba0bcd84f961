"""The shelf: what a worker receives is read by the main process before its place is used again."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from headrace import errors
from headrace.shelf import Shelf, ShelfBuffers


def read(shelf: Shelf, offset: int, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    shelf.read(offset, memoryview(buffer))
    return bytes(buffer)


def test_a_place_is_used_again_when_its_batch_must_have_been_read() -> None:
    shelf = Shelf(1)
    buffers = ShelfBuffers(shelf, 0, 2)
    offsets = []
    for number in range(9):
        view = buffers.allocate(3)
        view[:] = b"%03d" % number
        offsets.append(buffers.offset_of(view))
        buffers.give_back(view)
        for sent in range(max(0, number - 1), number + 1):
            assert read(shelf, offsets[sent], 3) == b"%03d" % sent
    assert len(set(offsets)) == 3


def test_buffers_in_use_are_apart_and_grow() -> None:
    shelf = Shelf(2)
    one, other = ShelfBuffers(shelf, 0, 1), ShelfBuffers(shelf, 1, 1)
    views = [buffers.allocate(5000) for buffers in (one, one, other, other)]
    for number, view in enumerate(views):
        view[:] = bytes([number]) * 5000
    offsets = [one.offset_of(view) for view in views[:2]]
    offsets += [other.offset_of(view) for view in views[2:]]
    assert [read(shelf, offset, 5000) for offset in offsets] == [
        bytes([number]) * 5000 for number in range(4)
    ]
    for view in views[:2]:
        one.give_back(view)
    large = one.allocate(3 << 20)
    large[-3:] = b"end"
    assert read(shelf, one.offset_of(large) + len(large) - 3, 3) == b"end"


def test_an_empty_batch_has_a_place_too() -> None:
    shelf = Shelf(1)
    buffers = ShelfBuffers(shelf, 0, 1)
    view = buffers.allocate(0)
    assert read(shelf, buffers.offset_of(view), 0) == b""


def test_all_places_are_used_again_after_a_reset() -> None:
    buffers = ShelfBuffers(Shelf(1), 0, 5)
    before = {buffers.offset_of(buffers.allocate(10)) for _ in range(4)}
    buffers.reset()
    assert {buffers.offset_of(buffers.allocate(10)) for _ in range(4)} == before


def test_places_that_somebody_may_still_write_to_are_left_alone() -> None:
    shelf = Shelf(1)
    offsets = []
    for num_spoilt in range(16):
        buffers = ShelfBuffers(shelf, 0, 1, num_spoilt)
        offsets += [buffers.offset_of(buffers.allocate(1)) for _ in range(3)]
    assert len(set(offsets)) == 48
    with pytest.raises(errors.FeedError, match="did not end in time"):
        ShelfBuffers(shelf, 0, 1, 16)


def test_another_process_writes_what_this_one_reads() -> None:
    shelf = Shelf(1024)

    def write() -> None:
        buffers = ShelfBuffers(shelf, 1023, 1)
        view = buffers.allocate(4)
        view[:] = b"here"
        os._exit(0 if buffers.offset_of(view) == 1023 << 49 else 1)

    child = multiprocessing.get_context("fork").Process(target=write)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert read(shelf, 1023 << 49, 4) == b"here"
