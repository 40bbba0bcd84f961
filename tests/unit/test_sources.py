from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans import Sequential, Shuffled
from headrace.sources import MAX_STREAM_BYTES, Objects, Stream

PLAN = Shuffled(global_batch_size=256, seed=17)

streams = st.builds(
    Stream,
    source=st.builds(
        Objects,
        st.text(
            st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1
        ).map("/data/{}".format),
        suffix=st.sampled_from(["", ".jpg", (".jpg", ".png"), ()]),
        recursive=st.booleans(),
    ),
    plan=st.one_of(
        st.builds(Sequential, batch_size=st.integers(1, 2**31 - 1)),
        st.builds(Shuffled, global_batch_size=st.integers(1, 9), seed=st.integers(0, 2**64 - 1)),
    ),
)


# --- Values ---------------------------------------------------------------------------------------


@given(stream=streams)
def test_a_stream_comes_back_from_json(stream: Stream) -> None:
    assert msgspec.json.decode(msgspec.json.encode(stream), type=Stream) == stream


@given(stream=streams)
def test_a_stream_comes_back_from_plain_data(stream: Stream) -> None:
    assert msgspec.convert(msgspec.to_builtins(stream), Stream) == stream


def test_a_stream_in_a_file_has_this_form() -> None:
    text = (
        '{"source": {"type": "Objects", "uri": "/data/train", "suffix": ".jpg"},'
        ' "plan": {"type": "Shuffled", "global_batch_size": 256, "seed": 17}}'
    )
    assert msgspec.json.decode(text, type=Stream) == Stream(
        Objects("/data/train", suffix=(".jpg",)), PLAN
    )


def test_a_stream_is_a_frozen_value() -> None:
    stream = Stream(Objects("/data", suffix=[".a", ".b"]), PLAN)  # type: ignore[arg-type]
    assert hash(stream) == hash(Stream(Objects("/data", suffix=(".a", ".b")), PLAN))
    with pytest.raises(AttributeError):
        stream.plan = PLAN  # type: ignore[misc]


def test_one_suffix_and_a_tuple_of_one_are_the_same() -> None:
    assert Objects("/data", suffix=".jpg") == Objects("/data", suffix=(".jpg",))


# --- Paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/data/train", "/data/train"),
        ("/data//train/../val/", "/data/val"),
        ("/data/with space/ü", "/data/with space/ü"),
        ("/data/50%41?#x", "/data/50%41?#x"),
        ("/data/odd://name", "/data/odd:/name"),
        ("data:x/y", str(Path.cwd() / "data:x/y")),
        ("//[abc", "//[abc"),
        ("file:///data/train", "/data/train"),
        ("FILE:///data/train", "/data/train"),
        ("file:/data/train", "/data/train"),
        ("file://localhost/data/train", "/data/train"),
        ("file:///data/with%20space/%C3%BC", "/data/with space/ü"),
    ],
)
def test_a_path_and_a_file_uri_name_a_folder(uri: str, path: str) -> None:
    assert Objects(uri).path == path


@pytest.mark.parametrize(
    ("uri", "bucket"),
    [
        ("ais:images/train", "ais://images/train"),
        ("ais:/images/train", "ais://images/train"),
        ("S3:images", "S3://images"),
        ("gs:", "gs://"),
    ],
)
def test_a_bucket_that_lacks_a_slash_is_not_taken_for_a_folder(uri: str, bucket: str) -> None:
    with pytest.raises(PlanError) as raised:
        Objects(uri)
    assert f"write {bucket} for a bucket, or ./{uri} for a folder" in str(raised.value)
    assert Objects(f"./{uri}").path == str(Path.cwd() / uri)


def test_a_path_object_is_taken() -> None:
    assert Objects(Path("/data/train")) == Objects("/data/train")  # type: ignore[arg-type]


def test_a_relative_path_starts_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Objects("train").path == str(tmp_path / "train")


def test_a_tilde_is_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Objects("~/train").path == "/home/somebody/train"


def test_the_path_is_not_resolved_through_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert Objects(str(tmp_path / "link")).path == str(tmp_path / "link")


@pytest.mark.parametrize("uri", ["train", "~/train", "file:///data/a%20b", "/data/odd%20name"])
def test_an_anchored_stream_names_the_same_folder_from_anywhere(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Objects(uri, suffix=".jpg", recursive=False)
    path, anchored = source.path, Stream(source, PLAN).anchored()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/elsewhere")
    assert anchored.source == Objects(path, suffix=".jpg", recursive=False)
    assert anchored.source.location == path
    assert anchored.plan == PLAN
    assert anchored.anchored() == anchored


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("", "uri='' is no source: give a folder, a file:// URI"),
        (None, "uri=None is no source"),
        (7, "uri=7 is no source"),
        (b"/data", "uri=b'/data' is no source"),
        ("ftp://bucket/x", "has scheme 'ftp': supported are file://"),
        ("http://proxy:51080/v1/objects/b/x-{0..3}.tar", "is written ais://b/x-{0..3}.tar"),
        ("pipe:curl -s http://proxy/x.tar", "is a command, and none is run: write ais://bucket"),
        ("ais://", "has bucket ''"),
        ("file://host/data", "names host 'host': a file:// URI has no host"),
        ("/data/\0", r"uri='/data/\x00' is no source"),
        ("file:///data/a%00b", "uri='file:///data/a%00b' is no source"),
        ("file:///data/a#b", "write '#' as %23"),
        ("file:///data/a?b", "'?' as %3F"),
        ("file://[abc/d", "is no source: Invalid IPv6 URL"),
        ("file://", "names no folder"),
    ],
)
def test_what_names_no_folder_is_refused(uri: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(PlanError) as refused:
        Objects(uri)
    assert told in str(refused.value)
    assert f"uri={uri!r}" in str(refused.value)


@pytest.mark.parametrize("suffix", [7, None, (".jpg", 7), b".jpg", (b".jpg",)])
def test_a_suffix_that_is_no_text_is_refused(suffix: Any) -> None:  # noqa: ANN401
    with pytest.raises(PlanError) as refused:
        Objects("/data", suffix=suffix)
    assert f"suffix={suffix!r}" in str(refused.value)


def test_recursive_is_true_or_false() -> None:
    with pytest.raises(PlanError, match="recursive='no'"):
        Objects("/data", recursive="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"source": "/data"},
            "source='/data' is no source: use Objects(uri), Shards(uri) or MultiShard",
        ),
        ({"plan": "Shuffled"}, "plan='Shuffled' is no plan: see headrace.plans"),
        ({"on_bad": "warn"}, "on_bad='warn' is unknown: choose 'fail' or 'skip'"),
    ],
)
def test_a_stream_of_other_things_is_refused(fields: dict[str, Any], told: str) -> None:
    parts: dict[str, Any] = {"source": Objects("/data"), "plan": PLAN, **fields}
    with pytest.raises(PlanError) as refused:
        Stream(**parts)
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"source":{"type":"Objects","uri":"ftp://b"},"plan":P}', "scheme 'ftp'"),
        ('{"source":{"type":"Objects","url":"/d"},"plan":P}', "`$.source`"),
        ('{"source":{"type":"Object","uri":"/d"},"plan":P}', "'Object' - at `$.source.type`"),
        ('{"source":{"type":"Objects","uri":"/d"}}', "required field `plan`"),
        ('{"source":{"type":"Objects","uri":"/d"},"plan":P,"shuffle":1}', "field `shuffle`"),
        ('{"source":{"type":"Objects","uri":"/d"},"plan":P,"on_bad":"warn"}', "`$.on_bad`"),
    ],
)
def test_a_wrong_stream_in_a_file_names_what_is_wrong(text: str, told: str) -> None:
    plan = '{"type":"Sequential","batch_size":8}'
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(text.replace("P}", plan + "}").replace("P,", plan + ","), type=Stream)
    assert told in str(refused.value)


def test_a_stream_that_is_too_long_to_say_is_refused_with_the_ways_out() -> None:
    stream = Stream(Objects("ais://b", names=[f"{number:050}" for number in range(11_000)]), PLAN)
    with pytest.raises(PlanError) as refused:
        stream.plain()
    assert "over ais://b takes 572" in str(refused.value)
    assert f"the limit is {MAX_STREAM_BYTES}: give names as a template" in str(refused.value)
    template = Objects("ais://b", names="{00000000..00099999}")
    assert Stream(template, PLAN).plain()["source"]["names"] == {"ais://b/": "{00000000..00099999}"}


def test_the_separator_of_a_path_does_not_matter_at_its_end() -> None:
    assert Objects("/data/").path == Objects("/data").path == os.path.normpath("/data/")
