from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans import Chain, Link, Sequential
from headrace.sources import Objects, Stream

Facts = list[tuple[str, str, Any]]


def facts(source: Objects) -> Facts:
    return [(selection.root, selection.prefix, selection.names) for selection in source.selections]


def labels(*uris: str) -> list[str]:
    return [selection.label for selection in Objects(uris).selections]


def refusal(*args: Any, **options: Any) -> str:  # noqa: ANN401 - of `Objects`
    with pytest.raises(PlanError) as refused:
        Objects(*args, **options)
    return str(refused.value)


# --- What is selected -----------------------------------------------------------------------------


def test_the_order_is_that_of_the_uris_and_for_each_that_of_its_prefixes() -> None:
    source = Objects(
        ["ais://b/t/", "/data", "s3://c"],
        prefixes={"s3://c": ["z", "a"], "/data": "x/"},
    )
    assert facts(source) == [
        ("ais://b", "t/", None),
        ("/data", "x/", None),
        ("s3://c", "z", None),
        ("s3://c", "a", None),
    ]


def test_none_is_all_and_an_empty_list_nothing() -> None:
    assert facts(Objects("ais://b", prefixes=None)) == [("ais://b", "", None)]
    assert facts(Objects("ais://b", prefixes={"ais://b": None})) == [("ais://b", "", None)]
    assert facts(Objects(["ais://b", "ais://c"], prefixes={"ais://b": []})) == [
        ("ais://c", "", None)
    ]
    assert "prefixes and names take nothing of it" in refusal("ais://b", prefixes=[])
    assert "prefixes and names take nothing of it" in refusal("ais://b", names=[])


def test_names_are_a_list_of_words_or_one_template() -> None:
    assert facts(Objects("ais://b", names=["x{0..1}"])) == [("ais://b", "", ("x{0..1}",))]
    assert facts(Objects("ais://b", names="x{0..1}")) == [("ais://b", "", ("x0", "x1"))]


def test_a_template_in_a_uri_is_one_source_for_each_number() -> None:
    assert facts(Objects("ais://b{1..2}/d{08..10}/")) == [
        (f"ais://b{bucket}", f"d{number}/", None)
        for bucket in (1, 2)
        for number in ("08", "09", "10")
    ]
    assert [selection.path for selection in Objects("/data/{1..3}").selections] == [
        "/data/1",
        "/data/2",
        "/data/3",
    ]


def test_escaped_braces_are_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Objects("file:///data/%7B1..3%7D")
    assert source.path == "/data/{1..3}"
    assert source.anchored().path == "/data/{1..3}"
    assert facts(Objects("ais://b", prefixes="x{1..3}")) == [("ais://b", "x{1..3}", None)]


def test_one_uri_in_a_list_is_that_uri() -> None:
    assert Objects(["ais://b"]) == Objects("ais://b")
    assert Objects(["ais://b"], prefixes={"ais://b/": ["a"]}) == Objects("ais://b", prefixes="a")


# --- Labels ---------------------------------------------------------------------------------------


def test_names_have_a_label_only_where_there_are_several_roots() -> None:
    assert labels("ais://b/x", "ais://b/y") == ["", ""]
    assert labels("/data/train", "ais://b/x", "ais://b/y") == ["train", "b", "b"]


def test_a_label_that_is_taken_has_a_number_behind_it() -> None:
    assert labels("ais://b", "s3://b", "ais://@#ns/b", "/data/b", "/") == [
        "b",
        "b@1",
        "b@2",
        "b@3",
        "_",
    ]
    assert labels("/x/b@1", "/x/b", "/y/b") == ["b@1", "b", "b@2"]
    assert labels("/x/b", "/y/b", "/z/b@1") == ["b", "b@1", "b@1@2"]


# --- Nothing twice --------------------------------------------------------------------------------


_prefixes = st.lists(st.text("ab/", max_size=4), min_size=1, max_size=6)
_names = st.text("ab/", min_size=1, max_size=5)


@given(prefixes=_prefixes, names=st.lists(_names, max_size=30), recursive=st.booleans())
def test_no_object_is_in_two_selections(
    prefixes: list[str], names: list[str], recursive: bool
) -> None:
    try:
        source = Objects("ais://b", prefixes=prefixes, recursive=recursive)
    except PlanError:
        # Then two have one in common: what the longer of them selects, if that may be a name.
        assert any(
            longer.startswith(shorter) and (recursive or "/" not in longer[len(shorter) :])
            for one, other in combinations(prefixes, 2)
            for shorter, longer in [sorted([one, other], key=len)]
        )
    else:
        for name in names:
            assert sum(selection.takes(name) for selection in source.selections) <= 1


@given(
    prefixes=_prefixes, name=_names.filter(lambda name: name[-1] != "/"), recursive=st.booleans()
)
def test_a_name_beside_prefixes_is_refused_where_one_of_them_has_it(
    prefixes: list[str], name: str, recursive: bool
) -> None:
    try:
        listed = Objects("ais://b", prefixes=prefixes, recursive=recursive, suffix=("a", "/b"))
    except PlanError:
        assume(False)
    is_taken = any(selection.takes(name) for selection in listed.selections)
    assume("" not in prefixes)  # its URI would be the one with the names
    try:
        Objects(
            [*(f"ais://b/{prefix}" for prefix in prefixes), "ais://b"],
            recursive=recursive,
            suffix=listed.suffix,
            names={"ais://b": [name]},
        )
    except PlanError as refused:
        assert is_taken
        assert f"names has {name!r} of ais://b, which is in" in str(refused)
    else:
        assert not is_taken


@pytest.mark.parametrize(
    ("uri", "options", "told"),
    [
        ("ais://b", {"prefixes": ["a", "ab"]}, "prefix 'a' is the beginning of prefix 'ab', both"),
        (["ais://b/x", "ais://b/x"], {}, "prefix 'x' is there twice, both of ais://b"),
        (["ais://b", "AIS://b/x"], {}, "prefix '' is the beginning of prefix 'x', both of ais://b"),
        ("ais://b/x-{0..10}", {}, "prefix 'x-1' is the beginning of prefix 'x-10'"),
        ("ais://b", {"names": ["a", "b", "a"]}, "names has 'a' of ais://b twice"),
        (
            ["ais://b/x/", "ais://b"],
            {"names": {"ais://b": ["x/1"]}},
            "names has 'x/1' of ais://b, which is in ais://b/x/ too",
        ),
        (["/data", "/data/"], {}, "prefix '' is there twice, both of /data"),
    ],
)
def test_what_would_be_there_twice_is_refused(
    uri: Any,  # noqa: ANN401
    options: dict[str, Any],
    told: str,
) -> None:
    text = refusal(uri, **options)
    assert told in text
    assert "leave one out" in text


def test_what_only_looks_alike_is_taken() -> None:
    Objects(["ais://b/x/", "ais://b"], names={"ais://b": ["y/1"]})
    Objects(["ais://b/x/", "ais://b"], suffix=".jpg", names={"ais://b": ["x/1.txt"]})
    Objects(["ais://b/x", "s3://b/x", "ais://@#n/b/x"])
    Objects("ais://b", prefixes=["a", "a/b"], recursive=False)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "options", "told"),
    [
        ([], {}, "uri=[] is no source: give one URI at least"),
        (["ais://b", ""], {}, "uri='' is no source"),
        (["ais://b", "ftp://x"], {}, "uri='ftp://x' has scheme 'ftp'"),
        (["ais://b", "ais://c"], {"names": ["a"]}, "names=['a'] is for one URI, and there are 2"),
        ("ais://b", {"prefixes": {"ais://c": "a"}}, "prefixes has 'ais://c', which is none of uri"),
        ("ais://b", {"prefixes": {7: "a"}}, "prefixes has 7, which is none of uri"),
        ("ais://b", {"prefixes": 7}, "prefixes['ais://b']=7 must be a text, or a list of texts"),
        ("ais://b", {"names": ["a", 7]}, "names['ais://b']=['a', 7] must be a text"),
        (
            "ais://b",
            {"prefixes": {"ais://b": "a", "ais://b/": "b"}},
            "prefixes has 'ais://b/' twice, in two ways to write it",
        ),
        ("ais://b", {"prefixes": "a", "names": ["a"]}, "has prefixes and names: give it one"),
        ("ais://b/x{0..1}/", {"names": ["a"]}, "which is a template: write what it stands for"),
        ("ais://b/t/", {"names": ["1"]}, "which does not begin with 't/': names are whole, so"),
        ("ais://b/t/", {"prefixes": "1"}, "so write 't/1', or a URI without 't/'"),
        ("ais://b", {"names": ["a/../b"]}, "has 'a/../b', which is no name: it is relative"),
        ("ais://b", {"names": ["a/"]}, "has 'a/', which is no name"),
        ("ais://b", {"names": [""]}, "has '', which is no name"),
        ("/data", {"names": ["../secret"]}, "has '../secret', which is no name"),
        ("/data", {"names": ["/secret"]}, "has '/secret', which is no name: that of a file"),
        ("/data", {"prefixes": ["../"]}, "has '../', which is no name"),
        ("/data", {"names": ["a\0"]}, "which is no UTF-8 text without NUL"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    uri: Any,  # noqa: ANN401
    options: dict[str, Any],
    told: str,
) -> None:
    assert told in refusal(uri, **options)


@pytest.mark.parametrize(
    ("uri", "options", "told"),
    [
        ("ais://b/x{00000..16384}/", {}, "has 16385 URIs and prefixes, the limit is 16384: list"),
        ("ais://b", {"names": [str(n) for n in range(1 << 17)] + ["x"]}, "has 131073 names, the"),
    ],
)
def test_a_source_has_its_limits(uri: str, options: dict[str, Any], told: str) -> None:
    assert told in refusal(uri, **options)


# --- As a value -----------------------------------------------------------------------------------

SOURCE = Objects(
    ["ais://b/x/", "~/data"], prefixes={"~/data": ["a", "b"]}, names={"ais://b/x/": "x/{1..3}"}
)


def test_it_travels_and_compares_and_hashes() -> None:
    again = msgspec.json.decode(msgspec.json.encode(SOURCE), type=Objects)
    assert again == SOURCE
    assert hash(again) == hash(SOURCE)
    assert msgspec.convert(msgspec.to_builtins(SOURCE), Objects) == SOURCE
    assert Objects(SOURCE.uri, prefixes=SOURCE.prefixes, names=SOURCE.names) == SOURCE


def test_new_fields_travel_only_where_they_say_something() -> None:
    """So that a daemon that does not know them yet takes all others."""
    assert msgspec.to_builtins(Objects("/data", prefixes=None, names={"/data": None})) == {
        "type": "Objects",
        "uri": "/data",
        "suffix": (),
        "recursive": True,
    }


def test_the_identity_of_one_uri_is_what_it_was_in_the_first_version() -> None:
    """It names the pointer to the manifest, which an update of the daemon must still find."""
    assert Objects("AIS://b", suffix=".x").identity == (
        b'{"type":"Objects","uri":"ais://b/","suffix":[".x"],"recursive":true}'
    )


def test_the_identity_is_one_for_all_ways_to_write_the_uris() -> None:
    one = Objects(["aws://b", "/data/./x"], prefixes={"aws://b": "p"})
    other = Objects(["s3://b/", "/data/x"], prefixes={"s3://b": ("p",)})
    assert one.identity == other.identity
    assert one.identity != Objects(["s3://b/", "/data/x"]).identity


def test_an_anchored_source_names_the_same_from_anywhere(
    tmp_path: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    source = Objects(["train{1..2}", *SOURCE.uris], prefixes=SOURCE.prefixes, names=SOURCE.names)
    stream = Stream(
        source, Chain(plans={"a": Link(Sequential(batch_size=1), source=Objects(["x", "y"]))})
    ).anchored()
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert [selection.location for selection in stream.source.selections] == [
        f"{tmp_path}/train1",
        f"{tmp_path}/train2",
        "ais://b/x/",
        "/home/somebody/data/a",
        "/home/somebody/data/b",
    ]
    assert stream.anchored() == stream
    assert stream.sources["a"] == Objects([f"{tmp_path}/x", f"{tmp_path}/y"])


def test_the_title_is_the_first_uri_and_how_many_more() -> None:
    assert Objects("ais://b/{0..3}/").title == "ais://b/{0..3}/"
    assert SOURCE.title == "ais://b/x/ and 1 more"
    assert Objects(["aws://b", "ais://c"]).location == "s3://b/ and 1 more"
