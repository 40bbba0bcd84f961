"""Ranges of files: into their places, with few calls, and of the file that was listed."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.errors import ObjectChangedError, ObjectMissingError, ObjectUnreadableError
from headrace_daemon.source import openfiles
from headrace_daemon.source.local import LocalReader
from headrace_daemon.source.reader import ReadRequest
from tests.support.loops import run
from tests.support.spans import EDGE, Span, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from headrace_daemon.errors import ObjectError
    from headrace_daemon.source.reader import Request
    from tests.support.loops import Loop

CONTENT: Final = random.Random(3).randbytes(5_000)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with some files of the same content."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(4):
        (root / f"{number}").write_bytes(CONTENT)
    return root


class Calls:
    """The system, which notes what it was asked for, and may give less than that."""

    def __init__(self, patch: pytest.MonkeyPatch, at_most: int | None = None) -> None:
        self.opened: list[str] = []
        self.reads: list[tuple[int, int, int]] = []
        """Of each read: where, how many bytes, into how many buffers."""
        self._at_most = at_most
        self._open, self._preadv = os.open, os.preadv
        patch.setattr(os, "open", self._note_open)
        patch.setattr(os, "preadv", self._note_read)

    def _note_open(self, path: str, flags: int) -> int:
        self.opened.append(path)
        return self._open(path, flags)

    def _note_read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.reads.append((offset, sum(map(len, buffers)), len(buffers)))
        if self._at_most is not None:
            left, short = self._at_most, []
            for buffer in buffers:
                short.append(buffer[:left])
                left -= len(short[-1])
            buffers = short
        return self._preadv(descriptor, buffers, offset)


def read(root: Path, requests: Sequence[Request], loop: Loop = "asyncio") -> None:
    with ThreadPoolExecutor(1) as pool:
        run(LocalReader(str(root), pool).read(requests), loop)


@given(st.lists(spans(CONTENT), min_size=1, max_size=4), st.sampled_from([None, 1_000, 70]))
def test_ranges_go_into_their_places_and_a_file_is_opened_once(
    shards: Path, asked: list[Span], at_most: int | None
) -> None:
    for span in asked:
        span.memory[:] = bytes([EDGE]) * len(span.memory)
    target = bytearray(len(CONTENT))
    requests: list[Request] = [span.request(f"{n % 2}") for n, span in enumerate(asked)]
    requests.append(ReadRequest("3", memoryview(target)))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openfiles, "GAP_BYTES", 1_000)
        patch.setattr(openfiles, "MAX_BUFFERS", 4)
        calls = Calls(patch, at_most)
        read(shards, requests)
    assert len(calls.opened) == len(set(calls.opened)) == min(2, len(asked)) + 1
    assert all(num_buffers <= 4 for _, _, num_buffers in calls.reads)
    assert len(os.listdir("/proc/self/fd")) == before
    assert target == CONTENT
    for span in asked:
        span.check()


@pytest.mark.parametrize(
    ("parts", "reads"),
    [
        ([(10, 20)], [(10, 10, 1)]),
        ([(0, 100), (612, 700), (700, 700), (700, 900)], [(0, 900, 4)]),
        ([(0, 100), (1_100, 1_200), (3_000, 3_001)], [(0, 1_200, 3), (3_000, 1, 1)]),
        ([], []),
        ([(7, 7)], []),
    ],
)
def test_a_range_takes_one_call_unless_its_gaps_are_long(
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: list[tuple[int, int]],
    reads: list[tuple[int, int, int]],
) -> None:
    """What lies before the first place, in long gaps and behind the last place is not read."""
    monkeypatch.setattr(openfiles, "GAP_BYTES", 1_000)
    calls = Calls(monkeypatch)
    span = Span.of(CONTENT, 0, 5_000, parts)
    read(shards, [span.request("0")])
    assert calls.reads == reads
    span.check()


def test_many_files_are_not_open_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openfiles, "MAX_OPEN", 3)
    asked = [Span.of(CONTENT, 100, 200) for _ in range(8)]
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(CONTENT)
    closed: list[int] = []
    calls, close = Calls(monkeypatch), os.close
    preadv, most = os.preadv, 0

    def note(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    def count(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal most
        most = max(most, len(calls.opened) - len(closed))
        return preadv(descriptor, buffers, offset)

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        reader = LocalReader(str(tmp_path), pool)
        patch.setattr(os, "preadv", count)
        patch.setattr(os, "close", note)
        pool.submit(
            reader._read_files,
            [span.request(f"{number}") for number, span in enumerate(asked)],
            Event(),
        ).result()
    assert most == 3
    assert len(closed) == 8
    for span in asked:
        span.check()


# --- What is wrong with a file --------------------------------------------------------------------


def shrink(path: Path) -> None:
    path.write_bytes(CONTENT[:15])


def grow(path: Path) -> None:
    path.write_bytes(CONTENT + b"x")


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (shrink, ObjectChangedError, "it has 15 bytes, the manifest says 5000"),
        (grow, ObjectChangedError, "it has 5001 bytes, the manifest says 5000"),
        (turn_into_a_folder, ObjectChangedError, "is no file any more"),
        (os.unlink, ObjectMissingError, "it is in the manifest but not there any more"),
    ],
)
def test_a_range_of_another_file_than_was_listed_is_an_error(
    tmp_path: Path,
    loop: Loop,
    change: Callable[[Path], None],
    kind: type[ObjectError],
    told: str,
) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    change(path)
    span = Span.of(CONTENT, 10, 20)
    with pytest.raises(kind) as raised:
        read(tmp_path, [span.request("a")], loop)
    assert told in str(raised.value)
    assert raised.value.what == str(path)
    if change is not turn_into_a_folder:
        assert f"bytes 10-19 of file {path}" in str(raised.value)
    assert span.is_untouched()


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_file_that_shrinks_between_two_ranges_or_in_one_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_before: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    calls = Calls(monkeypatch)
    preadv = os.preadv

    def read_and_shrink(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if len(calls.reads) == num_before:
            os.truncate(path, 1_500)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read_and_shrink)
    asked = [Span.of(CONTENT, 0, 1_000), Span.of(CONTENT, 1_000, 3_000)]
    with pytest.raises(ObjectChangedError) as raised:
        read(tmp_path, [span.request("a") for span in asked])
    told = f"bytes 1000-2999 of file {path}: it has 1500 bytes, the manifest says 5000"
    assert told in str(raised.value)
    asked[0].check()


def test_a_range_that_the_system_cannot_read_is_named(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ObjectUnreadableError) as raised:
        read(shards, [Span.of(CONTENT, 0, 7).request("2")])
    assert f"bytes 0-6 of file {shards}/2: it cannot be read: Input/output error" in str(
        raised.value
    )


def test_a_file_that_cannot_be_read_is_left_out_where_that_is_allowed(shards: Path) -> None:
    told: list[str] = []
    asked = [Span.of(CONTENT, 3, 9) for _ in range(3)]
    requests = [
        span.request(name)._replace(on_bad=lambda error: told.append(error.what))
        for span, name in zip(asked, ["0", "gone", "1"], strict=True)
    ]
    read(shards, requests)
    assert told == [f"{shards}/gone"]
    asked[0].check()
    assert asked[1].is_untouched()
    asked[2].check()
