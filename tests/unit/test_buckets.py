"""Buckets: what a URI names, in one form for all ways to write it."""

from __future__ import annotations

import pytest

from headrace.buckets import Bucket
from headrace.errors import PlanError
from headrace.plans import Sequential
from headrace.sources import Objects, Stream


@pytest.mark.parametrize(
    ("uri", "bucket"),
    [
        ("ais://b", ("ais", "@#", "b", "")),
        ("ais://b/", ("ais", "@#", "b", "")),
        ("AIS://b/train/", ("ais", "@#", "b", "train/")),
        ("ais://b//x", ("ais", "@#", "b", "/x")),
        ("s3://my.bucket-1_x/a", ("aws", "@#", "my.bucket-1_x", "a")),
        ("aws://b/a", ("aws", "@#", "b", "a")),
        ("gs://b/a", ("gcp", "@#", "b", "a")),
        ("gcp://b/a", ("gcp", "@#", "b", "a")),
        ("az://b/a", ("azure", "@#", "b", "a")),
        ("azure://b/a", ("azure", "@#", "b", "a")),
        ("oci://b/a", ("oci", "@#", "b", "a")),
        ("ais://@#ns1/b/a", ("ais", "@#ns1", "b", "a")),
        ("ais://@uuid#ns1/b/a", ("ais", "@uuid#ns1", "b", "a")),
        # Names are taken as they are, whatever a URI would make of them.
        ("ais://b/50%41?x#y z+é/../\n", ("ais", "@#", "b", "50%41?x#y z+é/../\n")),
    ],
)
def test_a_uri_names_a_bucket_and_the_beginning_of_names(
    uri: str, bucket: tuple[str, str, str, str]
) -> None:
    assert Bucket.parse(uri) == bucket
    assert Objects(uri).bucket == bucket
    assert Bucket.parse(Bucket.parse(uri).uri) == bucket


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("ais://", "has bucket ''"),
        ("ais:///x", "has bucket ''"),
        ("ais://b%20c/x", "has bucket 'b%20c'"),
        ("ais://b c", "has bucket 'b c'"),
        ("ais://@#n/", "has bucket ''"),
        ("ais://b/\0", "no UTF-8 text without NUL"),
        ("ais://b/\ud800", "no UTF-8 text without NUL"),
        ("ais://b/" + "é" * 513, "prefix of 1026 bytes, the limit is 1024"),
    ],
)
def test_what_names_no_bucket_is_refused(uri: str, told: str) -> None:
    with pytest.raises(PlanError) as refused:
        Objects(uri)
    assert told in str(refused.value)
    assert repr(uri)[:20] in str(refused.value)


def test_all_ways_to_write_a_bucket_are_one_location() -> None:
    assert Objects("aws://b/x").location == Objects("S3://b/x").location == "s3://b/x"
    assert Objects("ais://b").location == Objects("ais://b/").location == "ais://b/"
    assert Objects("ais://b/x").location != Objects("ais://b/x/").location


@pytest.mark.parametrize(
    ("uri", "is_remote"),
    [("ais://b", False), ("ais://@#ns/b", False), ("ais://@uuid#ns/b", True), ("s3://b", True)],
)
def test_a_bucket_of_a_provider_or_of_another_cluster_is_remote(uri: str, is_remote: bool) -> None:
    assert Bucket.parse(uri).is_remote is is_remote


def test_an_object_is_shown_with_its_bucket() -> None:
    assert Bucket.parse("ais://b/x").address("x/1.jpg") == "ais://b/x/1.jpg"
    assert Bucket.parse("aws://b/x").address("y") == "s3://b/y"


def test_an_anchored_stream_keeps_its_bucket() -> None:
    stream = Stream(Objects("aws://b/a", suffix=".jpg"), Sequential(batch_size=1))
    assert stream.anchored().source == Objects("s3://b/a", suffix=".jpg")
