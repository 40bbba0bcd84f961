from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import MemberError, PlanError
from headrace.members import MemberSample, group_members, split_name

NAMES = st.text(alphabet="ab./X", max_size=9)


@pytest.mark.parametrize(
    ("name", "webdataset", "aistore"),
    [
        ("0001.jpg", ("0001", "jpg"), ("0001", "jpg")),
        ("d/0001.seg.png", ("d/0001", "seg.png"), ("0001", "png")),
        ("x", None, None),
        (".x", None, ("", "x")),
        ("a/.x", ("a/", "x"), ("", "x")),
        ("a.b/.x", None, ("", "x")),
        ("a.b/c/.x", ("a.b/c/", "x"), ("", "x")),
        ("a/b.", ("a/b", ""), None),
        ("d.e/s.x", ("d.e/s", "x"), ("s", "x")),
        ("d.e/s", None, None),
        ("", None, None),
        ("a..b", ("a", ".b"), ("a", "b")),
        ("s.PNG", ("s", "png"), ("s", "PNG")),
        ("line\nfeed/s.x", ("line\nfeed/s", "x"), ("s", "x")),
    ],
)
def test_each_rule_has_its_key_and_field(
    name: str, webdataset: tuple[str, str] | None, aistore: tuple[str, str] | None
) -> None:
    assert split_name(name) == webdataset
    assert split_name(name, "aistore") == aistore


def test_a_sample_is_a_run_of_adjacent_members() -> None:
    samples = group_members(["s1.jpg", "s1.cls", "s2.jpg", "s1.txt"])
    assert samples == [
        MemberSample("s1", {"jpg": 0, "cls": 1}),
        MemberSample("s2", {"jpg": 2}),
        MemberSample("s1", {"txt": 3}),
    ]


def test_a_name_without_a_dot_does_not_end_a_run() -> None:
    samples = group_members(["s.jpg", "README", "s.cls"])
    assert samples == [MemberSample("s", {"jpg": 0, "cls": 2})]


def test_a_repeated_field_is_an_error_that_names_the_member() -> None:
    with pytest.raises(MemberError, match=r"'d/s1\.JPG'.*'jpg'.*'d/s1'.*'a\.tar'") as caught:
        group_members(["d/s1.jpg", "d/s1.JPG"], shard="a.tar")
    assert isinstance(caught.value, ValueError)
    assert caught.value.member == "d/s1.JPG"


def test_aistore_gathers_from_the_whole_shard_and_takes_the_last() -> None:
    samples = group_members(["a/s.png", "t.png", "b/s.seg.png", "s.PNG"], "aistore")
    assert samples == [MemberSample("s", {"png": 2, "PNG": 3}), MemberSample("t", {"png": 1})]


def test_files_are_samples_in_the_order_of_their_names() -> None:
    samples = group_members(["b/2.x", "README", "b/10.x.y", "a"], "files")
    assert [(sample.key, sample.members) for sample in samples] == [
        ("README", {"data": 1}),
        ("a", {"data": 3}),
        ("b/10.x.y", {"data": 2}),
        ("b/2.x", {"data": 0}),
    ]
    assert split_name(".x", "files") == (".x", "data")


def test_an_unknown_rule_is_refused_even_without_members() -> None:
    with pytest.raises(PlanError, match=r"rule='tar' is unknown: choose 'webdataset', 'aistore'"):
        group_members([], "tar")  # type: ignore[arg-type]


@given(names=st.lists(NAMES, max_size=12))
def test_every_member_that_has_a_key_is_in_exactly_one_sample(names: list[str]) -> None:
    wanted = [index for index, name in enumerate(names) if split_name(name) is not None]
    try:
        samples = group_members(names)
    except MemberError:
        return
    assert [index for sample in samples for index in sample.members.values()] == wanted
    assert all(sample.members for sample in samples)


@given(names=st.lists(NAMES, max_size=12))
def test_aistore_keys_are_unique_and_in_order_of_first_appearance(names: list[str]) -> None:
    keys = [sample.key for sample in group_members(names, "aistore")]
    seen = dict.fromkeys(
        split.key for name in names if (split := split_name(name, "aistore")) is not None
    )
    assert keys == list(seen)


def test_fields_keep_their_case_on_request() -> None:
    assert split_name("s.JPG", lowercase=False) == ("s", "JPG")
    assert group_members(["s.JPG", "s.jpg"], lowercase=False) == [
        MemberSample("s", {"JPG": 0, "jpg": 1})
    ]
