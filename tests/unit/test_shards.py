"""Sources of shards as they are written, and as they travel."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans import Chain, Link, Sequential
from headrace.shards import MAX_FIELDS, MAX_STREAMS, MultiShard, Shards
from headrace.sources import Objects, Source, Stream, typed

PLAN = Sequential(batch_size=1)


def taken(source: Source) -> list[tuple[str, str, tuple[str, ...] | None]]:
    """Return root, prefix and names of each selection."""
    return [(one.root, one.prefix, one.names) for one in source.selections]


# ---- Shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "selections"),
    [
        ("ais://b/x/1.tar", [("ais://b", "", ("x/1.tar",))]),
        ("ais://b/x/", [("ais://b", "x/", None)]),
        ("ais://b", [("ais://b", "", None)]),
        ("ais://b/x.tar/", [("ais://b", "x.tar/", None)]),
        ("ais://b/x.tar?a", [("ais://b", "x.tar?a", None)]),
        ("ais://b/{8..10}.tar", [("ais://b", "", ("8.tar", "9.tar", "10.tar"))]),
        (
            "ais://b{0..1}/{0..1}.tar",
            [("ais://b0", "", ("0.tar", "1.tar")), ("ais://b1", "", ("0.tar", "1.tar"))],
        ),
        (
            ["ais://b/2.tar", "ais://c/2.tar", "ais://b/1.tar", "ais://b/x/"],
            [
                ("ais://b", "", ("2.tar",)),
                ("ais://c", "", ("2.tar",)),
                ("ais://b", "", ("1.tar",)),
                ("ais://b", "x/", None),
            ],
        ),
        ("/d/x/1.tar", [("/d/x", "", ("1.tar",))]),
        ("/d/x.tar/", [("/d/x.tar", "", None)]),
        ("/d/x.tar/1.tar", [("/d/x.tar", "", ("1.tar",))]),
        ("file:///d/x%20%7B0..1%7D.tar", [("/d", "", ("x {0..1}.tar",))]),
        ("/d/{a,b}/{00..01}.tar", [("/d/{a,b}", "", ("00.tar", "01.tar"))]),
        ("/d/{1..2}/x.tar", [("/d/1", "", ("x.tar",)), ("/d/2", "", ("x.tar",))]),
        ("ais://b/x.TAR", [("ais://b", "", ("x.TAR",))]),
        ("/d/x.Tar/", [("/d/x.Tar", "", None)]),
    ],
)
def test_a_uri_that_ends_like_a_shard_is_one(uri: Any, selections: list[Any]) -> None:  # noqa: ANN401
    source = Shards(uri)
    assert taken(source) == selections
    assert taken(source.anchored()) == selections
    # Of what is listed, only shards are taken; what is named is taken as it is.
    assert {one.suffix for one in source.selections if one.names is None} <= {(".tar",)}
    assert {one.suffix for one in source.selections if one.names is not None} <= {()}
    labels = {one.root: one.label for one in source.selections}
    assert len(set(labels.values())) == len(labels)
    assert bool(labels[source.selections[0].root]) == (len(labels) > 1)


@pytest.mark.parametrize("ending", ["tar.gz", "TAR.GZ", "Tgz", "ZIP"])
def test_the_case_of_an_ending_does_not_matter(ending: str) -> None:
    source = Shards(f"ais://b/x.{ending}", fields=["jpg"])
    assert source.is_streamed
    assert taken(source) == [("ais://b", "", (f"x.{ending}",))]
    assert taken(Shards("ais://b/x.Shard", suffix=".SHARD")) == [("ais://b", "", ("x.Shard",))]


def test_a_suffix_of_ones_own_says_what_ends_like_a_shard() -> None:
    assert taken(Shards("ais://b/x.shard", suffix=".shard")) == [("ais://b", "", ("x.shard",))]
    assert taken(Shards("ais://b/x.tar", suffix=".shard")) == [("ais://b", "x.tar", None)]
    assert taken(Shards("ais://b/x.bin", suffix="")) == [("ais://b", "x.bin", None)]
    assert taken(Shards("ais://b/x.tar", suffix="")) == [("ais://b", "", ("x.tar",))]
    (one,) = Shards("ais://b", suffix=(".a", ".b")).selections
    assert one.suffix == (".a", ".b")


def test_shards_are_chosen_by_name_and_prefix_as_objects_are() -> None:
    source = Shards("ais://b/p", names="p-{0..2}.tar")
    assert taken(source) == [("ais://b", "p", ("p-0.tar", "p-1.tar", "p-2.tar"))]
    source = Shards(["ais://a", "/d"], prefixes={"ais://a": ["y", "x"]})
    assert taken(source) == [("ais://a", "y", None), ("ais://a", "x", None), ("/d", "", None)]


@pytest.mark.parametrize("field", ["names", "prefixes"])
@pytest.mark.parametrize("uri", ["ais://b/1.tar", "/d/1.tar"])
def test_nothing_is_chosen_of_a_shard(uri: str, field: str) -> None:
    with pytest.raises(PlanError) as refused:
        Shards(uri, **{field: ["2.tar"]})  # type: ignore[arg-type]
    assert f"{field} has {uri!r}, which is a shard" in str(refused.value)
    assert taken(Shards(f"{uri}/", **{field: [f"{'1.tar/' * ('ais' in uri)}2.tar"]}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uris", "told"),
    [
        (["ais://b/1.tar", "ais://b/1.tar"], "names has '1.tar' of ais://b twice"),
        (["ais://b/", "ais://b/1.tar"], "names has '1.tar' of ais://b, which is in ais://b"),
        (["/d/{0..2}.tar", "/d/../d/2.tar"], "names has '2.tar' of /d twice"),
    ],
)
def test_no_shard_is_in_a_source_twice(uris: list[str], told: str) -> None:
    with pytest.raises(PlanError, match="an object is in a source once") as refused:
        Shards(uris)
    assert told in str(refused.value)


def test_there_are_not_more_shards_by_name_than_can_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.located.MAX_NAMES", 8)
    Shards(["ais://a/{1..4}.tar", "ais://b/{1..4}.tar"])
    with pytest.raises(PlanError, match="has 9 names, the limit is 8: list a prefix"):
        Shards(["ais://a/{1..4}.tar", "ais://b/{0..4}.tar"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fields": "jpg"}, "fields='jpg' must be a list of names: write fields=['jpg']"),
        ({"fields": []}, "fields=[] must be a list of names, of one at least; None for all"),
        ({"fields": {"jpg"}}, "must be a list of names"),
        ({"fields": [".jpg"]}, "fields has '.jpg': write it without the dot, 'jpg'"),
        ({"fields": ["a", "b", "a"]}, "fields has 'a' twice: leave one out"),
        ({"fields": ["__key__"]}, "fields has '__key__', under which a sample has its own name"),
        ({"fields": [b"a"]}, "fields has b'a', which is no name of a field"),
        ({"fields": ["\udc80"]}, "which is no name of a field"),
        (
            {"fields": [str(number) for number in range(MAX_FIELDS + 1)]},
            f"fields has {MAX_FIELDS + 1} names, the limit is {MAX_FIELDS}",
        ),
        ({"missing": None}, "missing=None is unknown: choose 'error', 'none' or 'empty'"),
        ({"rule": "wds"}, "rule='wds' is unknown: choose 'webdataset', 'aistore' or 'files'"),
        ({"lowercase": 1}, "lowercase=1"),
        ({"links": "follow"}, "links='follow' is unknown: choose 'skip' or 'error'"),
        ({"on_bad_shard": "fail"}, "on_bad_shard='fail' is unknown: choose 'error' or 'skip'"),
        ({"suffix": 7}, "suffix=7 is no suffix"),
        ({"recursive": None}, "recursive=None must be true or false"),
        ({"uri": "ftp://b/x.tar"}, "has scheme 'ftp'"),
        ({"uri": []}, "uri=[] is no source"),
        ({"uri": "ais:b/x.tar"}, "write ais://b/x.tar for a bucket"),
        ({"uri": "/d/{0..999999}.tar"}, "stands for 1000000 names, the limit is"),
    ],
)
def test_each_option_is_checked_where_it_is_written(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError) as refused:
        Shards(**{"uri": "ais://b", **options})
    assert told in str(refused.value)


def test_long_lists_of_fields_are_refused_at_once() -> None:
    with pytest.raises(PlanError, match="fields has 1000000 names"):
        Shards("ais://b", fields=[str(number) for number in range(1_000_000)])


OTHER: dict[str, Any] = {
    "fields": ["a"],
    "missing": "none",
    "rule": "aistore",
    "lowercase": False,
    "links": "error",
    "on_bad_shard": "skip",
    "suffix": ".t",
    "recursive": False,
    "names": ["1.tar"],
    "prefixes": ["p"],
}


def test_whatever_changes_the_samples_makes_another_source() -> None:
    identities = {Shards("ais://b").identity}
    for option, value in OTHER.items():
        identities.add(Shards("ais://b", **{option: value}).identity)
    identities |= {Shards(uri).identity for uri in ("ais://c", "ais://b/x.tar", "ais://b/x.tar/")}
    identities |= {Shards(uri).identity for uri in ("/d/x.tar", "/d/x.tar/", "/d/x")}
    identities |= {Shards("ais://b", fields=fields).identity for fields in (["a", "b"], ["b", "a"])}
    identities.add(Shards("ais://b", fields=["a"], index=False).identity)
    identities.add(Objects("ais://b").identity)
    assert len(identities) == 1 + len(OTHER) + 6 + 2 + 1 + 1
    # Whether empty places are passed over changes no sample.
    assert set(OTHER) == set(Shards.__struct_fields__) - {"uri", "index", "on_empty"}


def test_one_source_is_the_same_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Shards(f"{tmp_path}/x.tar")
    for uri in ("x.tar", "./x.tar", f"file://{tmp_path}/x.tar", Path(tmp_path / "x.tar")):
        source = Shards(uri)  # type: ignore[arg-type]
        assert source.identity == here.identity
        assert hash(source) == hash(here)
        assert source.anchored() == here
        assert source.location == f"{tmp_path}/x.tar"
    monkeypatch.chdir("/")
    assert here.anchored() is here
    assert Shards(f"{tmp_path}/y/").location == f"{tmp_path}/y"


@pytest.mark.parametrize("uri", ["x.tar/", "x.tar//", "y{0..1}.tar/", "~/x.tar/"])
def test_a_folder_that_is_called_like_a_shard_stays_one(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    stream = Stream(Shards(uri), PLAN).anchored()
    assert all(one.names is None and one.path.startswith(str(tmp_path)) for one in
               stream.source.selections)  # fmt: skip
    assert stream.anchored() == stream
    assert stream.source.identity == Shards(uri).identity


values = st.builds(
    Shards,
    st.sampled_from(["ais://b/{0..3}.tar", "/d/x/", "/d/x.tar", ["/d", "ais://c"]]),
    fields=st.none() | st.lists(st.sampled_from("abc"), min_size=1, unique=True),
    missing=st.sampled_from(["error", "none", "empty"]),
    rule=st.sampled_from(["webdataset", "aistore"]),
    lowercase=st.booleans(),
    links=st.sampled_from(["skip", "error"]),
    on_bad_shard=st.sampled_from(["error", "skip"]),
)
joined = st.builds(
    lambda streams, join, length: MultiShard(**streams, join=join, length=length),
    st.dictionaries(st.text(st.sampled_from("ab-.é \n%"), min_size=1), values, min_size=1),
    st.sampled_from(["key", "position"]),
    st.sampled_from(["strict", "shortest"]),
)


@given(source=values | joined)
def test_a_source_comes_back_as_it_was(source: Source) -> None:
    stream = Stream(source, PLAN)
    assert msgspec.json.decode(msgspec.json.encode(stream), type=Stream) == stream
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(stream), type=Stream) == stream
    assert msgspec.convert(typed(msgspec.to_builtins(stream)), Stream) == stream
    for again in (pickle.loads(pickle.dumps(source)), copy.copy(source), copy.deepcopy(source)):
        assert again == source
        assert hash(again) == hash(source)
        assert again.selections == source.selections


# ---- MultiShard ----------------------------------------------------------------------------------

IMAGES, MASKS = Shards("ais://a/i-{0..3}.tar"), Shards("/d/masks.tar")


def test_streams_are_given_as_keyword_arguments_or_as_a_map() -> None:
    source = MultiShard(image=IMAGES, mask=MASKS, join="position")
    assert list(source.streams.items()) == [("image", IMAGES), ("mask", MASKS)]
    assert source.join == "position"
    streams: Any = {"image": IMAGES, "mask": MASKS}
    assert MultiShard(streams=streams, join="position") == source
    assert msgspec.structs.replace(source, length="shortest").length == "shortest"
    assert msgspec.structs.replace(source, streams={"x": MASKS}).streams == {"x": MASKS}
    # What looks like an option of the class is a stream like any other.
    assert list(MultiShard(streams=IMAGES, cls=MASKS).streams) == ["streams", "cls"]


def test_a_joined_source_is_that_of_its_streams() -> None:
    source = MultiShard(image=IMAGES, mask=MASKS)
    assert source.selections == IMAGES.selections + MASKS.selections
    assert source.has_bucket
    assert not MultiShard(mask=MASKS).has_bucket
    assert source.title == "ais://a/i-{0..3}.tar with /d/masks.tar"
    assert (
        MultiShard(a=MASKS, b=MASKS, c=IMAGES).location == "/d/masks.tar with /d/masks.tar with …"
    )


def test_streams_of_a_description_need_no_type() -> None:
    plain = {
        "source": {"type": "MultiShard", "streams": {"a": {"uri": "/x.tar"}}},
        "plan": {"type": "Sequential", "batch_size": 1},
    }
    stream = msgspec.convert(typed(plain), Stream)
    assert stream.source == MultiShard(a=Shards("/x.tar"))


def test_another_order_name_or_join_makes_another_source() -> None:
    sources = [
        MultiShard(a=IMAGES, b=MASKS),
        MultiShard(b=MASKS, a=IMAGES),
        MultiShard(a=MASKS, b=IMAGES),
        MultiShard(a=IMAGES, c=MASKS),
        MultiShard(a=IMAGES),
        MultiShard(a=IMAGES, b=MASKS, join="position"),
        MultiShard(a=IMAGES, b=MASKS, length="shortest"),
    ]
    assert len({one.identity for one in sources}) == len(sources)


@pytest.mark.parametrize(
    ("streams", "told"),
    [
        ({}, "MultiShard has no streams: give each as name=Shards(uri)"),
        ({"a/b": IMAGES}, "stream 'a/b' of MultiShard is no name: leave out '/'"),
        ({"": IMAGES}, "stream '' of MultiShard is no name"),
        ({"\udc80": IMAGES}, "of MultiShard is no name"),
        ({"a": "ais://b"}, "stream 'a' of MultiShard is 'ais://b': give Shards(uri)"),
        ({"a": Objects("ais://b")}, "stream 'a' of MultiShard is Objects("),
        ({"a": MultiShard(b=IMAGES)}, "stream 'a' of MultiShard is MultiShard("),
        (
            {str(number): IMAGES for number in range(MAX_STREAMS + 1)},
            f"MultiShard has {MAX_STREAMS + 1} streams, the limit is {MAX_STREAMS}",
        ),
        ({"a": IMAGES, "join": "name"}, "join='name' is unknown: choose 'key' or 'position'"),
        ({"a": IMAGES, "length": 3}, "length=3 is unknown: choose 'strict' or 'shortest'"),
    ],
)
def test_what_is_no_stream_is_refused(streams: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError) as refused:
        MultiShard(**streams)
    assert told in str(refused.value)


def test_a_stream_without_a_name_is_refused() -> None:
    with pytest.raises(PlanError, match="without a name: give each stream as name=Shards"):
        MultiShard(IMAGES)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"type": "MultiShard"}, "required field `streams`"),
        ({"type": "MultiShard", "streams": []}, "Expected `object`, got `array`"),
        ({"type": "MultiShard", "streams": {}}, "MultiShard has no streams"),
        ({"type": "MultiShard", "streams": {"a": {"type": "Objects", "uri": "/d"}}}, "'Objects'"),
        ({"type": "MultiShard", "streams": {"a/b": {"uri": "/d"}}}, "leave out '/'"),
        ({"type": "MultiShard", "streams": {"a": {"uri": "/d"}}, "on": 1}, "unknown field `on`"),
        ({"type": "Shards", "uri": "/d", "fields": "jpg"}, "`$.source.fields`"),
        ({"type": "Shards", "uri": "/d", "fields": [["jpg"]]}, "`$.source.fields[0]`"),
        ({"type": "Shards", "uri": "/d", "fields": []}, "of one at least"),
        ({"type": "Shards", "uri": "/d/\0.tar"}, "a path has no NUL byte"),
        ({"type": "Shards", "uri": {"a": 1}}, "`$.source.uri`"),
        ({"type": "Shards", "uri": "/d", "rule": "python"}, "`$.source.rule`"),
        ({"type": "Shards", "uri": "/d/x.tar", "names": ["../../etc/y.tar"]}, "is no name"),
        ({"type": "Shards", "uri": "/d", "names": ["a/../../y.tar"]}, "is no name"),
    ],
)
def test_a_hostile_description_is_refused_by_what_is_wrong(source: Any, told: str) -> None:  # noqa: ANN401
    plain = {"source": source, "plan": {"type": "Sequential", "batch_size": 1}}
    with pytest.raises((msgspec.ValidationError, PlanError)) as refused:
        msgspec.convert(typed(plain), Stream)
    assert told in str(refused.value)


def test_parts_of_a_plan_have_shards_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Chain(plans={"a": Link(PLAN), "b": Link(PLAN, source=Shards("x.tar/"))})
    stream = Stream(MultiShard(m=Shards("y.tar")), plan).anchored()
    assert taken(stream.sources["b"]) == [(f"{tmp_path}/x.tar", "", None)]
    assert taken(stream.source) == [(str(tmp_path), "", ("y.tar",))]
