"""The table of shards: what identifies each of them, as it is at this moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.manifest import Manifest
from headrace.shards import Shards
from headrace_daemon.errors import ObjectChangedError, ObjectError, ObjectUnreadableError
from headrace_daemon.source.openfiles import version_of_file
from headrace_daemon.source.shards.indexstore import Shard
from headrace_daemon.source.shards.table import as_indexed, shards_of

if TYPE_CHECKING:
    from pathlib import Path


def table_of(*names: str, size: int = 5, is_known: bool = False) -> Manifest:
    base = Manifest.build([(name.encode(), size) for name in names])
    column = np.array([b"x %d" % row for row in range(len(names))]) if is_known else None
    return Manifest(base.sizes, base.offsets, base.names, column, column)


def facts(shards: list[Shard | ObjectError]) -> list[Shard]:
    assert all(isinstance(shard, Shard) for shard in shards)
    return [shard for shard in shards if isinstance(shard, Shard)]


def test_files_are_identified_by_path_and_time_and_keep_their_names(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "s.tar").write_bytes(b"12345")
    os.utime(tmp_path / "b" / "s.tar", ns=(7, 7))
    one = facts(shards_of(Shards(f"{tmp_path}/a"), table_of("s.tar")))
    two = facts(
        shards_of(Shards([f"{tmp_path}/a/s.tar", f"{tmp_path}/b"]), table_of("a/s.tar", "b/s.tar"))
    )
    assert [shard.name for shard in one + two] == ["s.tar", "a/s.tar", "b/s.tar"]
    assert one[0].identity == two[0].identity, "however it is called"
    assert two[0].identity != two[1].identity
    assert two[1].version == version_of_file(7)
    os.utime(tmp_path / "a" / "s.tar", ns=(8, 8))
    assert (
        facts(shards_of(Shards(f"{tmp_path}/a"), table_of("s.tar")))[0].identity != one[0].identity
    )


def test_objects_are_identified_by_what_the_listing_says() -> None:
    source = Shards(["ais://a/", "ais://b/x.tar"])
    shards = facts(shards_of(source, table_of("a/s.tar", "b/x.tar", is_known=True)))
    assert [(shard.name, shard.checksum) for shard in shards] == [
        ("a/s.tar", b"x 0"),
        ("b/x.tar", b"x 1"),
    ]
    again = facts(shards_of(Shards("ais://a/"), table_of("s.tar", is_known=True)))
    assert again[0].identity == shards[0].identity, "another root beside it changes nothing"


def test_what_is_gone_or_grew_is_told_or_left_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"12345")
    (tmp_path / "b.tar").write_bytes(b"123456")
    table = table_of("a.tar", "b.tar", "c.tar")
    with pytest.raises(ObjectChangedError, match=r"b\.tar has 6 bytes, it had 5 when"):
        shards_of(Shards(str(tmp_path)), table)
    found = shards_of(Shards(str(tmp_path), on_bad_shard="skip"), table)
    assert [type(one) for one in found] == [Shard, ObjectChangedError, ObjectUnreadableError]
    versions = as_indexed(table, found).versions
    assert versions is not None
    assert [bool(version) for version in versions.tolist()] == [True, False, False]


def test_a_table_without_versions_stays_without() -> None:
    table = table_of("s.tar")
    assert as_indexed(table, shards_of(Shards("ais://a/"), table)) is table
