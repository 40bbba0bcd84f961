"""Grouping members as they come: the samples are those that an index has."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.manifest import Manifest
from headrace.shards import Shards
from headrace_daemon.errors import SamplesError, ShardRefusedError, SourceEmptyError
from headrace_daemon.source.shards.archives import stream_members
from headrace_daemon.source.shards.grouping import OVERHEAD_BYTES, Grouper, StreamedSample
from headrace_daemon.source.shards.samples import Members, list_samples
from headrace_daemon.source.shards.stream import StreamedMember
from tests.support.loops import run
from tests.support.shards import MemoryReader, packed, tar_of, zip_of

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.lists(
    st.sampled_from(["a", "b", "d/a", "d.x/a"]).flatmap(
        lambda base: st.sampled_from(
            [f"{base}{end}" for end in ("", ".jpg", ".cls", ".X", ".seg.png")]
        )
    ),
    max_size=12,
)


def source(**options: Any) -> Shards:  # noqa: ANN401 - those of `Shards`
    return Shards("d", **{"fields": ["jpg", "cls", "x"], "index": False, **options})


def grouped(
    own: Shards, members: list[tuple[str, bytes]], limit: int = 1000
) -> list[StreamedSample]:
    grouper = Grouper(own, "s.tgz", limit)
    found = [grouper.add(StreamedMember(name, data)) for name, data in members]
    return [sample for sample in (*found, grouper.finish()) if sample is not None]


@given(names=NAMES, missing=st.sampled_from(["none", "empty", "error"]), lowercase=st.booleans())
def test_samples_are_those_of_the_index(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], missing: str, *, lowercase: bool
) -> None:
    own = source(missing=missing, lowercase=lowercase)
    members = [(name, bytes([number])) for number, name in enumerate(names)]
    sizes = np.ones(len(names), dtype=np.int64)
    starts = np.arange(len(names), dtype=np.uint64)
    root = tmp_path_factory.getbasetemp() / "manifests"
    table = Manifest.build([(b"s.tgz", 10)])

    def by_index() -> list[tuple[str, list[bytes | None]]]:
        manifest = list_samples(own, table, lambda row: Members(names, starts, sizes), root)
        placement = manifest.placement
        assert placement is not None
        rows = zip(placement.starts.tolist(), placement.lengths.tolist(), strict=True)
        return [
            (
                manifest.name(index),
                [None if n < 0 else bytes([s])[:n] for s, n in zip(begin, length, strict=True)],
            )
            for index, (begin, length) in enumerate(rows)
        ]

    try:
        wanted = by_index()
    except SourceEmptyError:
        assert grouped(own, members) == []
        return
    except SamplesError as error:
        # An index refuses a field that no sample has; of a stream nobody knows that before its end.
        if (lacking := re.search("no sample of .* has field '(.*?)'", str(error))) is not None:
            if missing != "error":
                place = ["jpg", "cls", "x"].index(lacking[1])
                assert not any(one.values[place] for one in grouped(own, members))
            return
        with pytest.raises(SamplesError) as met:
            grouped(own, members)
        # It meets the first trouble; an index names what is doubled before what is missing.
        assert met.value.what == error.what
        return
    found = grouped(own, members)
    assert [(one.key, one.values) for one in found] == wanted
    assert [one.number for one in found] == list(range(len(found)))


def test_what_a_sample_takes_up_counts_and_is_limited() -> None:
    members = [("a.jpg", b"12345"), ("a.other", b"123456789"), ("a.cls", b"678"), ("b.jpg", b"")]
    own = source(missing="none")
    first, second = grouped(own, members, limit=8)
    assert (first.held_bytes, second.held_bytes) == (8 + OVERHEAD_BYTES, OVERHEAD_BYTES)
    words = r"sample 'a', number 0 of the shard, has 8 bytes at least, max_sample_bytes is 7"
    with pytest.raises(ShardRefusedError, match=words):
        grouped(own, members, limit=7)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_memory_is_told_before_it_is_taken(tmp_path: Path, kind: str) -> None:
    """What is told covers a large member before any of it is kept."""
    del tmp_path
    content = [("a.jpg", bytes(3 << 20)), ("b.jpg", b"x")]
    data = zip_of(content) if kind == "zip" else packed(tar_of(content), kind)
    reader = MemoryReader({f"s.{kind}": data})
    held: list[int] = []

    async def hold(num_bytes: int) -> None:
        held.append(num_bytes)

    async def read() -> list[tuple[str, int]]:
        (shard,) = reader.all()
        with ThreadPoolExecutor(1) as executor:
            members = stream_members(
                shard, reader, executor=executor, max_member_bytes=4 << 20, hold=hold
            )
            return [(one.name, len(one.data)) async for one in members]

    assert run(read()) == [("a.jpg", 3 << 20), ("b.jpg", 1)]
    assert max(held) >= 3 << 20
    assert held[-1] < 1 << 20, "less again"
