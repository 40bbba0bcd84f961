"""The writer of a manifest: what it writes page by page equals what is built at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.manifest import Manifest
from headrace_daemon.source.writer import ManifestWriter
from tests.support.files import files_of_at_most

if TYPE_CHECKING:
    from pathlib import Path

Row = tuple[bytes, int, bytes, bytes]

rows = st.dictionaries(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).map(
        str.encode
    ),
    st.tuples(
        st.integers(0, 2**60),
        st.sampled_from([b"", b"0123456789abcdef", b"ab", b"c" * 64]),
        st.sampled_from([b"", b"1", b"12345"]),
    ),
    max_size=30,
)


def built(table: list[Row]) -> Manifest:
    plain = Manifest.build([(name, size) for name, size, _, _ in table])
    checksums = np.array([row[2] for row in table], dtype=np.bytes_)
    versions = np.array([row[3] for row in table], dtype=np.bytes_)
    return Manifest(
        plain.sizes,
        plain.offsets,
        plain.names,
        checksums if checksums.any() else None,
        versions if versions.any() else None,
    )


def write(root: Path, pages: list[list[Row]], *, is_ordered: bool = False) -> Manifest:
    with ManifestWriter(root, is_ordered=is_ordered) as writer:
        for page in pages:
            names, sizes, checksums, versions = zip(*page, strict=True) if page else ((),) * 4
            writer.append(names, sizes, checksums, versions)
        assert writer.num_entries == sum(map(len, pages))
        return writer.finish()


def equal(left: Manifest, right: Manifest) -> bool:
    columns = ("sizes", "offsets", "names", "checksums", "versions")
    return left.digest == right.digest and all(
        np.array_equal(getattr(left, name), getattr(right, name))
        if getattr(right, name) is not None
        else getattr(left, name) is None
        for name in columns
    )


@given(table=rows, page=st.integers(1, 9), backwards=st.booleans())
def test_pages_in_any_order_make_the_manifest_of_the_sorted_whole(
    tmp_path_factory: pytest.TempPathFactory,
    table: dict[bytes, tuple[int, bytes, bytes]],
    page: int,
    backwards: bool,
) -> None:
    root = tmp_path_factory.mktemp("manifests")
    whole: list[Row] = [(name, *facts) for name, facts in sorted(table.items())]
    given_rows = whole[::-1] if backwards else whole
    pages = [given_rows[start : start + page] for start in range(0, len(whole), page)]
    manifest = write(root, pages)
    assert equal(manifest, built(whole))
    assert os.listdir(root) == [manifest.digest]


@given(table=rows, page=st.integers(1, 9))
def test_what_is_ordered_stays_as_it_is_appended(
    tmp_path_factory: pytest.TempPathFactory,
    table: dict[bytes, tuple[int, bytes, bytes]],
    page: int,
) -> None:
    root = tmp_path_factory.mktemp("manifests")
    whole: list[Row] = [(name, *facts) for name, facts in table.items()]
    pages = [whole[start : start + page] for start in range(0, len(whole), page)]
    assert equal(write(root, pages, is_ordered=True), built(whole))


def test_a_name_that_comes_twice_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    row: Row = (b"a", 1, b"", b"")
    with pytest.raises(ValueError, match="the name 'a' is listed twice"):
        write(tmp_path, [[row], [row]])
    assert os.listdir(tmp_path) == []


def test_a_writer_that_is_left_early_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ManifestWriter(tmp_path / "new") as writer:
        writer.append([b"a"], [1], [b"x"], [b"1"])
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "new") == []


def test_a_column_of_text_becomes_as_wide_as_its_longest(tmp_path: Path) -> None:
    manifest = write(
        tmp_path,
        [[(b"a", 1, b"12", b"1")], [(b"b", 1, b"123456", b"")], [(b"c", 1, b"", b"12")]],
    )
    assert manifest.checksums is not None
    assert manifest.checksums.tolist() == [b"12", b"123456", b""]
    assert manifest.versions is not None
    assert manifest.versions.tolist() == [b"1", b"", b"12"]


def test_the_same_data_with_newer_versions_is_the_same_manifest_with_them(tmp_path: Path) -> None:
    first = write(tmp_path, [[(b"a", 1, b"x", b"1")]])
    again = write(tmp_path, [[(b"a", 1, b"x", b"2")]])
    assert again.digest == first.digest
    assert again.versions is not None
    assert again.versions.tolist() == [b"2"]
    assert os.listdir(tmp_path) == [first.digest]
    assert not [name for name in os.listdir(tmp_path / first.digest) if name.startswith(".")]


@pytest.mark.parametrize("num_bytes", [0, 200, 6000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, num_bytes: int) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    page = [(b"%05d" % number, number, b"c" * 16, b"1") for number in range(3000)]
    with files_of_at_most(num_bytes), pytest.raises(OSError, match="File too large"):
        write(tmp_path, [page])
    assert os.listdir(tmp_path) == []
    assert open_files() == before
