"""Streams of shards that are joined: each sample has one partner in each stream, or it is told."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.manifest import Manifest
from headrace.shards import MultiShard, Shards
from headrace_daemon.errors import SamplesError, SourceEmptyError
from headrace_daemon.source.shards import join
from headrace_daemon.source.shards.join import join_streams
from headrace_daemon.source.shards.samples import Members, list_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Stream = list[list[str]]
"""Keys of the samples of each shard."""


def start_of(stream: int, shard: int, member: int) -> int:
    return 1_000_000 * stream + 10_000 * shard + member


def stream_of(root: Path, number: int, shards: Stream, fields: Sequence[str]) -> Manifest:
    """Return the samples of a stream; where a value begins says which one it is."""

    def members_of(row: int) -> Members:
        names = [f"{key}.{field}" for key in shards[row] for field in fields]
        starts = [start_of(number, row, member) for member in range(len(names))]
        return Members(names, np.array(starts, np.uint64), np.ones(len(names), np.int64))

    entries = [(f"{row}.tar".encode(), 1 << 20) for row in range(len(shards))]
    table = Manifest.build(entries)
    if number:  # some have versions, some do not
        versions = np.array([b"v%d" % row for row in range(len(shards))], dtype=np.bytes_)
        table = Manifest(table.sizes, table.offsets, table.names, None, versions)
    return list_samples(Shards(f"ais://{number}/"), table, members_of, root)


def joined(
    root: Path,
    streams: Mapping[str, Stream],
    *,
    fields: Mapping[str, Sequence[str]] | None = None,
    **options: Any,  # noqa: ANN401 - of MultiShard
) -> Manifest:
    root.mkdir(exist_ok=True)
    made = {
        name: stream_of(root.parent / "streams", number, shards, (fields or {}).get(name, ["x"]))
        for number, (name, shards) in enumerate(streams.items())
    }
    named: Any = {name: Shards(f"ais://{number}/") for number, name in enumerate(streams)}
    return join_streams(MultiShard(**named, **options), made, root)


def shown(manifest: Manifest) -> list[tuple[str, ...]]:
    """Return the key of each sample, and for each field ``stream shard member``."""
    placement = manifest.placement
    assert placement is not None
    found = []
    for row in range(len(manifest)):
        places = []
        for number, stream in enumerate(placement.streams):
            start = int(placement.starts[row, number])
            shard = placement.table.name(int(placement.shards[row, stream]))
            assert shard.endswith(f"/{start % 1_000_000 // 10_000}.tar")
            places.append(
                f"{shard.partition('/')[0]} {start % 1_000_000 // 10_000} {start % 10_000}"
            )
        found.append((manifest.name(row), *places))
    return found


def bounds(manifest: Manifest) -> list[int]:
    assert manifest.bounds is not None
    return list(map(int, manifest.bounds))


def refusal(root: Path, streams: Mapping[str, Stream], **options: Any) -> str:  # noqa: ANN401
    with pytest.raises((SamplesError, SourceEmptyError)) as refused:
        joined(root / "joined", streams, **options)
    assert list((root / "joined").iterdir()) == [], "nothing is left of what was refused"
    return str(refused.value)


# ---- by key --------------------------------------------------------------------------------------


def test_streams_may_be_cut_and_ordered_in_any_way(tmp_path: Path) -> None:
    manifest = joined(
        tmp_path / "joined",
        {"a": [["1", "2"], [], ["3"]], "b": [["3", "2", "1"]], "c": [[], ["2"], ["1", "3"]]},
    )
    assert manifest.fields == ("a", "b", "c")
    assert shown(manifest) == [
        ("1", "a 0 0", "b 0 2", "c 2 0"),
        ("2", "a 0 1", "b 0 1", "c 1 0"),
        ("3", "a 2 0", "b 0 0", "c 2 1"),
    ]
    assert bounds(manifest) == [0, 2, 2, 3]
    assert manifest.placement is not None
    table = manifest.placement.table
    assert [table.name(row) for row in range(len(table))] == [
        *("a/0.tar", "a/1.tar", "a/2.tar"),
        *("b/0.tar", "c/0.tar", "c/1.tar", "c/2.tar"),
    ]
    versions = table.versions_of(np.arange(7, dtype=np.uint64))
    assert versions == [b"", b"", b"", b"v0", b"v0", b"v1", b"v2"]
    assert manifest.sizes.tolist() == [3, 3, 3]


def test_fields_are_named_by_their_stream_and_where_it_has_several_by_both(tmp_path: Path) -> None:
    manifest = joined(
        tmp_path / "joined",
        {"a": [["1"]], "b": [["1"]]},
        fields={"a": ["jpg", "cls"], "b": ["seg.png"]},
    )
    assert manifest.fields == ("a.cls", "a.jpg", "b")
    assert manifest.placement is not None
    assert manifest.placement.streams == (0, 0, 1)
    assert shown(manifest) == [("1", "a 0 1", "a 0 0", "b 0 0")]


def test_one_stream_is_itself_with_the_name_of_the_stream(tmp_path: Path) -> None:
    for how in ("key", "position"):
        manifest = joined(tmp_path / how, {"a": [["1", "2"], ["3"]]}, join=how)
        assert manifest.fields == ("a",)
        assert shown(manifest) == [("1", "a 0 0"), ("2", "a 0 1"), ("3", "a 1 0")]


def test_fields_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, {"a": [["1"]], "a.x": [["1"]]}, fields={"a": ["x", "y"], "a.x": ["z"]})
    assert "the streams of ais://0/ with ais://1/ have field 'a.x' twice: rename a stream" in told


def test_a_sample_without_a_partner_is_told_with_both_shards(tmp_path: Path) -> None:
    told = refusal(tmp_path, {"a": [["1"], ["2", "3"]], "b": [["1", "3"]]})
    assert "sample '2' of shard '1.tar' of stream 'a' has no partner in stream 'b'" in told
    assert "whose sample at that place is sample '3' of shard '0.tar'" in told
    assert "length='shortest'" in told
    told = refusal(tmp_path, {"a": [["1"], ["3"]], "b": [["1"], ["2", "3"]]})
    assert "sample '2' of shard '1.tar' of stream 'b' has no partner in stream 'a'" in told
    assert "at that place is sample '3' of shard '1.tar'" in told


def test_shortest_leaves_out_what_has_no_partner_and_nothing_else(tmp_path: Path) -> None:
    manifest = joined(
        tmp_path / "joined",
        {
            "a": [["0"], ["1", "2", "3"], ["4"]],
            "b": [["4", "3", "9"], ["1"]],
            "c": [["4", "1", "2"]],
        },
        length="shortest",
    )
    assert shown(manifest) == [("1", "a 1 0", "b 1 0", "c 0 1"), ("4", "a 2 0", "b 0 0", "c 0 0")]
    assert bounds(manifest) == [0, 0, 1, 2]


@pytest.mark.parametrize("stream", ["a", "b"])
@pytest.mark.parametrize("length", ["strict", "shortest"])
def test_a_key_that_comes_twice_is_refused_with_both_shards(
    tmp_path: Path, stream: str, length: str
) -> None:
    streams = {"a": [["1"], ["2"]], "b": [["2"], ["1"]]}
    streams[stream] = [["1"], ["2"], ["3", "1"]]
    told = refusal(tmp_path, streams, length=length)
    assert f"stream {stream!r} has key '1' twice: in shard '0.tar' and in shard '2.tar'" in told
    assert "join='position'" in told


def test_streams_without_a_common_key_are_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, {"a": [["1"]], "b": [["2"]]}, length="shortest")
    assert "no sample of ais://0/ with ais://1/ has a partner in each stream" in told


# ---- by position ---------------------------------------------------------------------------------


def test_places_join_whatever_the_keys_and_the_shards(tmp_path: Path) -> None:
    manifest = joined(
        tmp_path / "joined",
        {"a": [["1", "2"], ["3"]], "b": [["1"], [], ["1", "x"]]},
        join="position",
    )
    assert shown(manifest) == [
        ("1", "a 0 0", "b 0 0"),
        ("2", "a 0 1", "b 2 0"),
        ("3", "a 1 0", "b 2 1"),
    ]
    assert bounds(manifest) == [0, 2, 3]


def test_a_stream_that_is_longer_is_refused_or_cut(tmp_path: Path) -> None:
    streams = {"a": [["1", "2"], ["3"]], "b": [["1"], ["2", "3"], ["4", "5"]]}
    told = refusal(tmp_path, streams, join="position")
    assert "stream 'b' has 5 samples and stream 'a' 3" in told
    assert "sample 3 of 'b' (sample '4' of shard '2.tar') has no partner" in told
    assert "behind the last one of 'a' (sample '3' of shard '1.tar')" in told
    other = {"b": streams["b"], "a": streams["a"]}
    manifest = joined(tmp_path / "joined", other, join="position", length="shortest")
    assert [row[0] for row in shown(manifest)] == ["1", "2", "3"]
    assert bounds(manifest) == [0, 1, 3, 3]


# ---- at large ------------------------------------------------------------------------------------


@st.composite
def cut(draw: st.DrawFn, keys: Sequence[str]) -> Stream:
    """Return keys in shards of any size, some of them empty."""
    marks = sorted(draw(st.lists(st.integers(0, len(keys)), max_size=4)))
    edges = [0, *marks, len(keys)]
    return [list(keys[start:stop]) for start, stop in pairwise(edges)]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Stream]:
    streams = {}
    for name in ("m", "n", "o")[: draw(st.integers(1, 3))]:
        keys = draw(st.lists(st.sampled_from("abcdefgé"), unique=True, min_size=1))
        streams[name] = draw(cut(keys))
    return streams


@given(streams=cases(), how=st.sampled_from(["key", "position"]), piece=st.sampled_from([1, 2, 99]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_partners_are_those_of_a_plain_loop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    streams: dict[str, Stream],
    how: str,
    piece: int,
) -> None:
    monkeypatch.setattr(join, "_PIECE", piece)
    flat = {
        name: [(key, row, at) for row, keys in enumerate(shards) for at, key in enumerate(keys)]
        for name, shards in streams.items()
    }
    expected: list[tuple[str, ...]] = []
    rows = []
    for place, (key, row, at) in enumerate(flat["m"]):
        partners = []
        for name, samples in flat.items():
            if how == "position":
                found = samples[place : place + 1]
            else:
                found = [one for one in samples if one[0] == key]
            partners += [f"{name} {one[1]} {one[2]}" for one in found]
        if len(partners) == len(streams):
            expected.append((key, *partners))
            rows.append(row)
        assert partners[0] == f"m {row} {at}"
    if not expected:
        with pytest.raises((SamplesError, SourceEmptyError)):
            joined(tmp_path / "joined", streams, join=how, length="shortest")
        return
    manifest = joined(tmp_path / "joined", streams, join=how, length="shortest")
    assert shown(manifest) == expected
    edges = [sum(one <= row for one in rows) for row in range(len(streams["m"]))]
    assert bounds(manifest) == [0, *edges]
    is_whole = all(len(samples) == len(expected) for samples in flat.values())
    if is_whole:
        strict = joined(tmp_path / "joined", streams, join=how)
        assert strict.digest == manifest.digest
    else:
        with pytest.raises((SamplesError, SourceEmptyError)):
            joined(tmp_path / "joined", streams, join=how)
