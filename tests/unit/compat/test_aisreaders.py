"""How the arguments of the drop-in readers become sources and plans; nothing is read."""

from __future__ import annotations

from typing import Any

import pytest
from aistore.sdk import Client
from aistore.sdk import DataShard as OriginalDataShard
from aistore.sdk.namespace import Namespace

from headrace import MultiShard, Shards
from headrace.compat.aistore import AISMultiShardStream, AISShardReader, DataShard
from headrace.compat.items import NothingToReadError
from headrace.errors import CursorError, PlanError
from headrace.plans import Sequential, Slice

CLIENT = Client("http://127.0.0.1:1")


def source(*given: Any, **options: Any) -> Shards:  # noqa: ANN401 - those of the reader
    found = AISShardReader(*given, **options).stream.source
    assert isinstance(found, Shards)
    return found


def test_buckets_are_named_by_what_they_are() -> None:
    buckets = [
        CLIENT.bucket("b"),
        CLIENT.bucket("cold", provider="aws"),
        CLIENT.bucket("n", namespace=Namespace(uuid="", name="ml")),
        CLIENT.bucket("far", namespace=Namespace(uuid="remais", name="")),
        "gs://c/train/",
    ]
    found = source(buckets)
    assert found.uris == (
        "ais://b",
        "s3://cold",
        "ais://@#ml/n",
        "ais://@remais#/far",
        "gs://c/train/",
    )
    assert source(buckets[0]) == source([buckets[0]]) == source("ais://b")


def test_names_of_shards_need_no_ending_and_samples_no_field() -> None:
    found = source("ais://b")
    assert [one.suffix for one in found.selections] == [("",)]
    assert (found.rule, found.missing, found.on_empty) == ("aistore", "empty", "skip")


def test_prefixes_belong_to_their_bucket() -> None:
    first, second, third = (CLIENT.bucket(name) for name in "abc")
    found = source([first, second, third], {first: "x/", third: [], second: ["2", "1"]})
    assert [one.location for one in found.selections] == [
        "ais://a/x/",
        "ais://b/2",
        "ais://b/1",
    ]
    assert source([first], {first: None}) == source([first], {}) == source(first)


def test_a_reader_that_takes_nothing_has_no_stream_and_no_items() -> None:
    for reader in (AISShardReader("ais://b", {"ais://b": []}), AISMultiShardStream([])):
        assert (list(reader), len(reader)) == ([], 0)
        with pytest.raises(NothingToReadError, match="it takes no shard"):
            _ = reader.stream
        with pytest.raises(NothingToReadError, match="has no position"):
            reader.state_dict()
        with pytest.raises(CursorError, match="takes no state"):
            reader.load_state_dict({})
        reader.close()


def test_streams_are_joined_by_place_up_to_the_shortest() -> None:
    given = [
        OriginalDataShard("http://127.0.0.1:1", "a", prefix="img-"),
        DataShard("", "b", provider="aws"),
        "ais://c/masks/",
    ]
    stream = AISMultiShardStream(given).stream
    found = stream.source
    assert isinstance(found, MultiShard)
    assert (found.join, found.length) == ("position", "shortest")
    assert [one.location for one in found.selections] == [
        "ais://a/img-",
        "s3://b/",
        "ais://c/masks/",
    ]
    assert {one.rule for one in found.streams.values()} == {"files"}
    assert stream.plan == Sequential(batch_size=32)


def test_workers_have_shards_or_sources_of_their_own() -> None:
    reader = AISShardReader(["ais://a", "ais://b", "ais://c"], samples_per_step=5)
    share = reader._share(1, 4)
    assert share is not None
    assert share.source == reader.stream.source
    assert share.plan == Sequential(batch_size=5, shards=Slice(1, None, 4))
    by_source = AISShardReader(
        ["ais://a", "ais://b", "ais://c"], {"ais://b": []}, None, False, True
    )
    shares = [by_source._share(number, 2) for number in range(2)]
    assert [share and share.source.title for share in shares] == ["ais://a and 1 more", None]
    assert by_source._share(0, 1) == by_source.stream


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AISShardReader([]), "has no source: give one bucket at least"),
        (lambda: AISShardReader(3), "3 is no bucket: give a Bucket of aistore.sdk, a URI"),
        (lambda: AISShardReader("ais://b", None, "resize"), "etl_name='resize' is not offered"),
        (lambda: AISShardReader("ais://b", show_progress=True), "show_progress=True is not offer"),
        (lambda: AISShardReader("ais://b", {"ais://c": "x"}), "prefix_map has 'ais://c', which"),
        (lambda: AISShardReader("ais://b", samples_per_step=0), "samples_per_step=0 is out of ran"),
        (lambda: AISShardReader("ais://b", rule="tar"), "rule='tar'"),  # type: ignore[arg-type]
        (lambda: AISShardReader("ais://b", socket="/s", local=True), "leave out socket='/s'"),
        (lambda: AISShardReader(["ais://b", "ais://b"]), "is there twice"),
        (lambda: AISMultiShardStream("ais://b"), "data_sources='ais://b' must be a list"),
        (lambda: AISMultiShardStream([DataShard("", "b", "ht")]), "has provider 'ht': known are"),
        (lambda: AISMultiShardStream([DataShard("", "b", etl_name="e")]), "etl_name='e' is not"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make: Any, sentence: str) -> None:  # noqa: ANN401
    with pytest.raises(PlanError, match=sentence):
        make()
