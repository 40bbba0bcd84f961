"""Where values lie in shards: as it is written, found again, told apart and refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ManifestMismatchError
from headrace.manifest import Manifest
from headrace.placement import ABSENT, COLUMNS, FIELDS_FILE, TABLE_FOLDER, Placement

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def table(*sizes: int, versions: bytes = b"") -> Manifest:
    found = Manifest.build([(f"{row}.tar".encode(), size) for row, size in enumerate(sizes)])
    if versions:
        column = np.array([versions] * len(sizes), dtype=np.bytes_)
        return Manifest(found.sizes, found.offsets, found.names, None, column)
    return found


def placed(**changes: Any) -> Manifest:  # noqa: ANN401 - of a placement
    """Return three samples of two fields, that lie in shards of two streams."""
    columns: dict[str, Any] = {
        "fields": ("a", "b"),
        "streams": (0, 1),
        "starts": np.array([[512, 512], [1536, 0], [512, 2048]], dtype=np.uint64),
        "lengths": np.array([[7, 9], [0, ABSENT], [3, 1]], dtype=np.int64),
        "shards": np.array([[0, 2], [0, 2], [1, 2]], dtype=np.uint32),
        "bounds": np.array([0, 2, 3], dtype=np.uint64),
        "table": table(4096, 2048, 4096),
    }
    placement = Placement(**{**columns, **changes})
    base = Manifest.build([(b"k0", 16), (b"k0", 0), (b"k2", 4)])
    return Manifest(base.sizes, base.offsets, base.names, placement=placement)


def assert_equal(one: Manifest, other: Manifest) -> None:
    assert (one.digest, one.blocks) == (other.digest, other.blocks)
    assert one.placement is not None
    assert other.placement is not None
    assert (one.placement.fields, one.placement.streams) == (
        other.placement.fields,
        other.placement.streams,
    )
    for column in COLUMNS:
        np.testing.assert_array_equal(
            getattr(one.placement, column), getattr(other.placement, column)
        )
    assert one.placement.table.digest == other.placement.table.digest


def test_what_was_saved_is_mapped_again(tmp_path: Path) -> None:
    manifest = placed()
    folder = manifest.save(tmp_path)
    again = Manifest.load(tmp_path, manifest.digest)
    assert_equal(manifest, again)
    assert [again[row] for row in range(3)] == [("k0", 16), ("k0", 0), ("k2", 4)]
    assert again.fields == ("a", "b")
    assert again.placement is not None
    assert again.placement.table.name(2) == "2.tar"
    # A second time nothing is written, and nothing is left aside.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert placed().save(tmp_path) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert [path.name for path in tmp_path.iterdir()] == [manifest.digest]


def test_lengths_come_by_field(tmp_path: Path) -> None:
    manifest = placed()
    indices = np.array([2, 1, 2], dtype=np.uint64)
    assert manifest.lengths_of(indices).tolist() == [[3, 0, 3], [1, ABSENT, 1]]
    assert manifest.bounds is not None
    assert manifest.bounds.tolist() == [0, 2, 3]
    objects = Manifest.build([(b"x", 5), (b"y", 6)])
    assert objects.lengths_of(np.array([1, 0], dtype=np.uint64)).tolist() == [[6, 5]]
    assert (objects.fields, objects.bounds) == (("data",), None)


def altered(column: NDArray[Any], row: tuple[int, ...]) -> NDArray[Any]:
    copy = column.copy()
    copy[row] = copy[row] + 1 if copy[row] != ABSENT else 0
    return copy


def test_whatever_says_where_values_lie_changes_the_digest() -> None:
    own = placed().placement
    assert own is not None
    others = [
        placed(fields=("a", "c")),
        placed(fields=("b", "a")),
        placed(streams=(1, 0)),
        placed(streams=(0, 0)),
        placed(bounds=np.array([0, 3], dtype=np.uint64)),
        placed(bounds=np.array([0, 1, 3], dtype=np.uint64)),
        placed(bounds=np.array([0, 0, 2, 3], dtype=np.uint64)),
        placed(table=table(4096, 2048, 4097)),
        placed(table=table(4096, 2048, 4096, 1)),
    ]
    for column in ("starts", "lengths", "shards"):
        for row in np.ndindex(getattr(own, column).shape):
            others.append(placed(**{column: altered(getattr(own, column), row)}))  # noqa: PERF401
    digests = {manifest.digest for manifest in [placed(), *others]}
    digests.add(Manifest(placed().sizes, placed().offsets, placed().names).digest)
    assert len(digests) == 1 + len(others) + 1


def test_versions_of_shards_do_not_count_and_are_not_kept(tmp_path: Path) -> None:
    old = placed(table=table(4096, 2048, 4096, versions=b"1"))
    new = placed(table=table(4096, 2048, 4096, versions=b"two"))
    assert old.digest == new.digest == placed().digest
    for manifest in (old, new):
        manifest.save(tmp_path)
        again = Manifest.load(tmp_path, old.digest)
        assert again.placement is not None
        assert again.placement.table.versions is None
        given = again.with_shard_versions(np.array([b"x", b"", b"z"]))
        assert_equal(given, manifest)
        assert given.placement is not None
        assert given.placement.table.versions_of(np.arange(3, dtype=np.uint64)) == [b"x", b"", b"z"]
        assert again.placement.table.versions is None, "the other one stays as it is"


@given(
    lengths=st.lists(
        st.lists(st.integers(ABSENT, 2**40), min_size=2, max_size=2), min_size=1, max_size=200
    )
)
def test_blocks_cover_each_sample(lengths: list[list[int]]) -> None:
    """Where one value differs, the block of its sample differs, and no other."""

    def manifest(rows: list[list[int]]) -> Manifest:
        n = len(rows)
        base = Manifest.build([(b"k", 1)] * n)
        placement = Placement(
            ("a", "b"),
            (0, 0),
            np.zeros((n, 2), dtype=np.uint64),
            np.array(rows, dtype=np.int64),
            np.zeros((n, 1), dtype=np.uint32),
            np.array([0, n], dtype=np.uint64),
            table(1 << 50),
        )
        return Manifest(base.sizes, base.offsets, base.names, placement=placement)

    whole = manifest(lengths)
    for row in {0, len(lengths) // 2, len(lengths) - 1}:
        changed = [list(one) for one in lengths]
        changed[row][1] += 1
        blocks = manifest(changed).blocks
        differing = [one for one in range(64) if blocks[one] != whole.blocks[one]]
        n = len(lengths)
        assert differing == [one for one in range(64) if one * n // 64 <= row < (one + 1) * n // 64]


# ---- damage --------------------------------------------------------------------------------------


def _break(folder: Path, how: str) -> None:
    kind, _, name = how.partition(" ")
    path = folder / name
    if kind == "no":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(path.read_bytes()[:-3])
    elif kind == "flip":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif kind == "narrow":
        np.save(path, np.load(path).astype(np.int32))
    elif kind == "flat":
        np.save(path, np.load(path).ravel())
    elif kind == "longer":
        column = np.load(path)
        np.save(path, np.concatenate([column, column]))


_FACTS = (
    "{}",
    "[]",
    "3",
    "{",
    "\udcff",
    '{"fields": ["a", "b"]}',
    '{"fields": ["a", "b"], "streams": [0, 2]}',
    '{"fields": ["a", "b"], "streams": [0, -1]}',
    '{"fields": ["a", "b"], "streams": [0]}',
    '{"fields": ["a", "b"], "streams": ["x", "y"]}',
    '{"fields": ["a"], "streams": [0]}',
    '{"fields": ["a", "c"], "streams": [0, 1]}',
    '{"fields": 7, "streams": [0, 1]}',
    '{"fields": ["a", "b"], "streams": null}',
)


@pytest.mark.parametrize(
    "how",
    [
        *(
            f"{kind} {column}.npy"
            for kind in ("no", "empty", "half", "flip", "narrow", "flat", "longer")
            for column in COLUMNS
            if (kind, column) != ("flat", "bounds")
        ),
        *(f"{kind} {TABLE_FOLDER}/sizes.npy" for kind in ("no", "empty", "half", "flip")),
        f"no {FIELDS_FILE}",
        *_FACTS,
    ],
)
def test_what_is_damaged_is_refused_with_its_folder(tmp_path: Path, how: str) -> None:
    manifest = placed()
    folder = manifest.save(tmp_path)
    if how in _FACTS:
        (folder / FIELDS_FILE).write_bytes(how.encode("utf-8", "surrogateescape"))
    else:
        _break(folder, how)
    with pytest.raises(ManifestMismatchError) as refused:
        Manifest.load(tmp_path, manifest.digest)
    assert f"the manifest files in {folder}" in str(refused.value)
    assert "remove that folder, it is made anew" in str(refused.value)


def test_the_file_of_fields_is_json(tmp_path: Path) -> None:
    folder = placed(fields=("é", "a\nb")).save(tmp_path)
    found = json.loads((folder / FIELDS_FILE).read_bytes())
    assert found == {"fields": ["é", "a\nb"], "streams": [0, 1]}
