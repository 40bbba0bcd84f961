"""From the members of shards to the samples of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.manifest import Manifest
from headrace.members import group_members
from headrace.placement import ABSENT
from headrace.shards import MAX_FIELDS, Shards
from headrace_daemon.errors import SamplesError, SourceEmptyError
from headrace_daemon.source.shards.samples import Members, list_samples

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.members import MemberRule

Names = list[list[str] | None]
"""Names of the members of each shard; None for one that is left out."""


def start_of(shard: int, member: int) -> int:
    return 512 + 1024 * member + 100_000 * shard


def size_of(shard: int, member: int) -> int:
    return (shard * 7 + member * 3) % 5


def members(shard: int, names: list[str] | None) -> Members | None:
    if names is None:
        return None
    starts = [start_of(shard, member) for member in range(len(names))]
    sizes = [size_of(shard, member) for member in range(len(names))]
    return Members(names, np.array(starts, np.uint64), np.array(sizes, np.int64))


def listed(root: Path, shards: Names, **options: Any) -> Manifest:  # noqa: ANN401 - of Shards
    table = Manifest.build([(f"{row}.tar".encode(), 1 << 20) for row in range(len(shards))])
    return list_samples(
        Shards("ais://b/", **options), table, lambda row: members(row, shards[row]), root
    )


def shown(manifest: Manifest) -> list[tuple[Any, ...]]:
    """Return key, shard, and for each field where it begins and how long it is, None for none."""
    placement = manifest.placement
    assert placement is not None
    assert placement.shards.shape == (len(manifest), 1)
    return [
        (
            manifest.name(row),
            int(placement.shards[row, 0]),
            *(
                None if length == ABSENT else (start, length) if length else length
                for start, length in zip(
                    placement.starts[row].tolist(), placement.lengths[row].tolist(), strict=True
                )
            ),
        )
        for row in range(len(manifest))
    ]


def bounds(manifest: Manifest) -> list[int]:
    assert manifest.bounds is not None
    return list(map(int, manifest.bounds))


def refusal(root: Path, shards: Names, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises((SamplesError, SourceEmptyError)) as refused:
        listed(root, shards, **options)
    assert list(root.iterdir()) == [], "nothing is left of what was refused"
    return str(refused.value)


# ---- fields --------------------------------------------------------------------------------------


def test_fields_are_those_of_all_shards_in_alphabetical_order(tmp_path: Path) -> None:
    shards: Names = [["a.jpg"], ["b.seg.png", "b.JPG"], [], ["c.cls", "README", "d/.x"]]
    manifest = listed(tmp_path, shards, missing="none")
    assert manifest.fields == ("cls", "jpg", "seg.png", "x")
    assert [row[:2] for row in shown(manifest)] == [("a", 0), ("b", 1), ("c", 3), ("d/", 3)]
    assert shown(manifest)[1] == (
        "b",
        1,
        None,
        (101_536, 10 % 5) if 10 % 5 else 0,
        (100_512, 2),
        None,
    )
    assert bounds(manifest) == [0, 1, 2, 2, 4]


def test_declared_fields_keep_their_order_and_leave_out_the_rest(tmp_path: Path) -> None:
    shards: Names = [["a.jpg", "a.cls", "a.json", "x.json", "b.cls", "b.jpg"]]
    manifest = listed(tmp_path, shards, fields=["jpg", "cls"])
    assert manifest.fields == ("jpg", "cls")
    assert [key for key, *_ in shown(manifest)] == ["a", "b"], "what has none of them is no sample"
    assert manifest.sizes.tolist() == [0 + 3, 0 + 2]
    one = listed(tmp_path, shards, fields=["json"])
    assert [key for key, *_ in shown(one)] == ["a", "x"]


def test_the_same_shards_make_the_same_manifest(tmp_path: Path) -> None:
    shards: Names = [["a.jpg", "b.jpg"], ["c.jpg"]]
    digests = {
        listed(tmp_path / "x", shards).digest,
        listed(tmp_path / "y", shards).digest,
        listed(tmp_path / "x", shards, fields=["jpg"]).digest,
        listed(tmp_path / "x", [["a.jpg"], ["b.jpg", "c.jpg"]]).digest,
        listed(tmp_path / "x", [["a.jpg", "b.jpg"], ["c.jpg"], []]).digest,
    }
    assert len(digests) == 3
    assert len(list((tmp_path / "x").iterdir())) == 3


# ---- what a sample lacks -------------------------------------------------------------------------

LACKING: Names = [["a.jpg", "a.cls"], ["b.jpg"]]


def test_what_a_sample_lacks_is_none_or_empty_or_refused(tmp_path: Path) -> None:
    none = listed(tmp_path, LACKING, missing="none")
    assert [row[2:] for row in shown(none)] == [((1536, 3), 0), (None, (100_512, 2))]
    empty = listed(tmp_path, LACKING, missing="empty")
    assert [row[2:] for row in shown(empty)] == [((1536, 3), 0), (0, (100_512, 2))]
    assert none.sizes.tolist() == empty.sizes.tolist() == [3, 2]
    assert none.digest != empty.digest
    (tmp_path / "other").mkdir()
    told = refusal(tmp_path / "other", LACKING)
    assert "sample 'b' of shard '1.tar' lacks field 'cls' (it has jpg)" in told
    assert "missing='none' or missing='empty'" in told


@pytest.mark.parametrize("missing", ["none", "empty"])
def test_a_field_that_no_sample_has_is_refused_with_those_that_there_are(
    tmp_path: Path, missing: str
) -> None:
    told = refusal(tmp_path, LACKING, fields=["jpg", "png"], missing=missing)
    assert told.startswith("no sample of ais://b/ has field 'png': give some of these to fields=")
    assert told.endswith(": cls, jpg")
    told = refusal(tmp_path, LACKING, fields=["JPG"], missing=missing)
    assert "in lower case (or see lowercase=): cls, jpg" in told
    many: Names = [[f"a.{number:02}" for number in range(12)]]
    told = refusal(tmp_path, many, fields=["x"], missing=missing)
    assert told.endswith("00, 01, 02, 03, 04, 05, 06, 07, …")


@pytest.mark.parametrize("missing", ["error", "none"])
def test_a_wrong_field_alone_is_told_as_such(tmp_path: Path, missing: str) -> None:
    assert "no sample of ais://b/ has field 'png'" in refusal(
        tmp_path, LACKING, fields=["png"], missing=missing
    )


def test_case_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    shards: Names = [["a.JPG", "b.jpg"]]
    assert listed(tmp_path, shards).fields == ("jpg",)
    manifest = listed(tmp_path, shards, lowercase=False, missing="none")
    assert manifest.fields == ("JPG", "jpg")


# ---- rules ---------------------------------------------------------------------------------------


def test_aistore_gathers_a_sample_from_the_whole_shard(tmp_path: Path) -> None:
    shards: Names = [["x/a.jpg", "y/b.jpg", "z/a.seg.cls", "w/a.jpg", "noext"], ["a.cls", "a.jpg"]]
    manifest = listed(tmp_path, shards, rule="aistore", missing="none")
    assert manifest.fields == ("cls", "jpg")
    assert shown(manifest) == [
        ("a", 0, (2560, 1), (3584, 4)),  # the later of two wins
        ("b", 0, None, (1536, 3)),
        ("a", 1, (100_512, 2), 0),
    ]


def test_webdataset_takes_runs_of_members_for_samples(tmp_path: Path) -> None:
    shards: Names = [["a.jpg", "b.jpg", "a.cls"]]
    manifest = listed(tmp_path, shards, missing="none")
    assert [row[0] for row in shown(manifest)] == ["a", "b", "a"]


def test_two_members_for_one_field_are_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, [["b.jpg"], ["a.jpg", "a.JPG"]])
    assert "1.tar" in told
    assert "a.JPG" in told


# ---- nothing, and too much -----------------------------------------------------------------------


@pytest.mark.parametrize("shards", [[[]], [[], []], [["README", ".hidden"]], [["a."], None]])
def test_shards_without_a_sample(tmp_path: Path, shards: Names) -> None:
    if shards[0] == ["a."]:  # has one, whose field has no name
        assert listed(tmp_path, shards).fields == ("",)
        return
    for options in ({}, {"fields": ["jpg"]}, {"missing": "none"}):
        told = refusal(tmp_path, shards, **options)
        assert told.startswith(f"no sample in the {len(shards)} shard(s) of ais://b/: a sample has")


def test_a_shard_that_is_left_out_has_no_samples(tmp_path: Path) -> None:
    manifest = listed(tmp_path, [None, ["a.x"], None, ["b.x"], None])
    assert [row[:2] for row in shown(manifest)] == [("a", 1), ("b", 3)]
    assert bounds(manifest) == [0, 0, 1, 1, 2, 2]
    assert manifest.placement is not None
    assert len(manifest.placement.table) == 5


def test_shards_that_are_all_left_out_are_not_called_empty(tmp_path: Path) -> None:
    told = refusal(tmp_path, [None, None])
    assert told.startswith("none of the 2 shards of ais://b/ can be indexed")


def test_no_field_takes_the_place_of_the_key(tmp_path: Path) -> None:
    told = refusal(tmp_path, [["a.jpg", "a.__key__"]])
    assert "has field '__key__', under which it has its own name" in told
    assert listed(tmp_path, [["a.jpg", "a.__key__"]], fields=["jpg"]).fields == ("jpg",)


def test_fields_are_bounded(tmp_path: Path) -> None:
    names = [f"{number % 9}.{number}" for number in range(MAX_FIELDS + 1)]
    told = refusal(tmp_path, [sorted(names)], missing="none")
    assert f"have more than {MAX_FIELDS} fields (0, 1, 10, 100, 101" in told
    assert listed(tmp_path, [sorted(names)], fields=["0"]).fields == ("0",)


# ---- at large ------------------------------------------------------------------------------------

NAMES = st.builds(
    "{}.{}".format, st.sampled_from(["a", "b", "c/d", "é", "e\nf"]), st.sampled_from("xyz")
)


@given(
    shards=st.lists(st.none() | st.lists(NAMES, max_size=8), min_size=1, max_size=5),
    fields=st.none() | st.lists(st.sampled_from("xyz"), min_size=1, unique=True),
    rule=st.sampled_from(["webdataset", "aistore"]),
    missing=st.sampled_from(["error", "none", "empty"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_samples_are_those_of_the_rule_with_each_value_where_its_member_is(
    tmp_path: Path, shards: Names, fields: list[str] | None, rule: MemberRule, missing: str
) -> None:
    options = {"fields": fields, "rule": rule, "missing": missing}
    try:
        groups = [[] if names is None else group_members(names, rule) for names in shards]
    except Exception:  # noqa: BLE001 - two members for one field
        with pytest.raises((SamplesError, SourceEmptyError)):
            listed(tmp_path, shards, **options)
        return
    all_fields = sorted({field for group in groups for one in group for field in one.members})
    taken = all_fields if fields is None else fields
    expected: list[tuple[Any, ...]] = [
        (
            one.key,
            row,
            *(
                (None if missing == "none" else 0)
                if field not in one.members
                else (start_of(row, one.members[field]), size_of(row, one.members[field]))
                if size_of(row, one.members[field])
                else 0
                for field in taken
            ),
        )
        for row, group in enumerate(groups)
        for one in group
        if set(taken) & set(one.members)
    ]
    lacks = any(set(taken) - set(one.members) for group in groups for one in group
                if set(taken) & set(one.members))  # fmt: skip
    if not expected or set(taken) - set(all_fields) or (lacks and missing == "error"):
        with pytest.raises((SamplesError, SourceEmptyError)):
            listed(tmp_path, shards, **options)
        return
    manifest = listed(tmp_path, shards, **options)
    assert manifest.fields == tuple(taken)
    assert shown(manifest) == expected
    rows = [row for _, row, *_ in expected]
    assert bounds(manifest) == [0, *(sum(one <= row for one in rows) for row in range(len(shards)))]
