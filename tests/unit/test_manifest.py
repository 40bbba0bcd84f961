from __future__ import annotations

import gc
import hashlib
import json
import os
import struct
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ManifestMismatchError
from headrace.manifest import NUM_BLOCKS, Entry, Manifest, compare

if TYPE_CHECKING:
    from collections.abc import Sequence

FEW = [("a/1.jpg", 10), ("a/2.jpg", 0), ("ü/ß 3.jpg", 2**40)]

text = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
listings = st.dictionaries(text, st.integers(0, 2**62), max_size=150).map(lambda d: list(d.items()))


def build(entries: Sequence[tuple[str, int]]) -> Manifest:
    return Manifest.build([(name.encode(), size) for name, size in entries])


def numbered(length: int) -> list[tuple[str, int]]:
    return [(f"{index:06}.bin", 100 + index) for index in range(length)]


def plain_digest(entries: Sequence[tuple[str, int]]) -> str:
    """Return the digest of a manifest as its description says, by other means."""
    n = len(entries)
    whole = hashlib.sha256(b"headrace.manifest.v1" + struct.pack("<Q", n))
    for number in range(64):
        block = [
            (name.encode(), size)
            for name, size in entries[number * n // 64 : (number + 1) * n // 64]
        ]
        content = b"".join(struct.pack("<q", size) for _, size in block)
        content += b"".join(struct.pack("<Q", len(name)) for name, _ in block)
        content += b"".join(name for name, _ in block)
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()


# --- Content --------------------------------------------------------------------------------------


@given(entries=listings)
def test_a_manifest_has_the_entries_it_was_built_of(entries: list[tuple[str, int]]) -> None:
    manifest = build(entries)
    assert len(manifest) == len(entries)
    assert [manifest[index] for index in range(len(entries))] == entries
    indices = np.arange(len(entries), dtype=np.uint64)
    assert manifest.names_of(indices) == [name for name, _ in entries]
    assert manifest.sizes.dtype == np.int64


def test_an_entry_has_a_name_and_a_size() -> None:
    manifest = build(FEW)
    assert manifest[2] == Entry(name="ü/ß 3.jpg", size=2**40)
    assert type(manifest[0].size) is int
    assert manifest[-1] == manifest[2]
    assert manifest.total_bytes == 10 + 2**40


def test_names_come_in_the_order_asked_for_also_twice() -> None:
    indices = np.array([2, 0, 2], dtype=np.uint64)
    assert build(FEW).names_of(indices) == ["ü/ß 3.jpg", "a/1.jpg", "ü/ß 3.jpg"]


@pytest.mark.parametrize("index", [3, -4, 2**40])
def test_an_index_outside_is_named_with_the_length(index: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index} is outside the manifest of 3 samples"):
        build(FEW)[index]


# --- Digest ---------------------------------------------------------------------------------------


def test_the_digest_is_pinned() -> None:
    # A change here makes every stored manifest and every cursor one of other data.
    assert build(FEW).digest == "ffd12be1b8c8eb622ec266d3828756f698e3da620b3007fe0f212a5eeceaada1"
    assert build(FEW).blocks[0] == "e3b0c44298fc1c14"  # of nothing: 3 samples fill 3 of 64 blocks


@given(entries=listings)
def test_the_digest_is_that_of_the_description(entries: list[tuple[str, int]]) -> None:
    assert build(entries).digest == plain_digest(entries)


def test_the_digest_depends_on_names_sizes_and_order() -> None:
    one, two = ("ab", 1), ("c", 2)
    digests = [
        build(entries).digest
        for entries in [
            [one, two],
            [two, one],
            [one],
            [],
            [("ab", 2), ("c", 1)],
            [("ab", 1), ("c", 3)],
            [("ab", 1), ("d", 2)],
            [("a", 1), ("bc", 2)],  # the same bytes of names, divided otherwise
            [one, two, ("", 0)],
        ]
    ]
    assert len(set(digests)) == len(digests)


@given(left=listings, right=listings)
def test_manifests_have_the_same_digest_only_if_they_are_the_same(
    left: list[tuple[str, int]], right: list[tuple[str, int]]
) -> None:
    assert (build(left).digest == build(right).digest) == (left == right)


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 1000])
def test_only_the_block_of_a_changed_sample_differs(length: int) -> None:
    before = build(numbered(length))
    assert len(before.blocks) == NUM_BLOCKS
    for index in sorted({0, 1, length // 2, length - 2, length - 1} & set(range(length))):
        (block,) = [
            number
            for number in range(NUM_BLOCKS)
            if number * length // NUM_BLOCKS <= index < (number + 1) * length // NUM_BLOCKS
        ]
        for changed in (("other", 100 + index), (f"{index:06}.bin", 7)):
            entries = numbered(length)
            entries[index] = changed
            after = build(entries)
            pairs = zip(before.blocks, after.blocks, strict=True)
            assert [number for number, (old, new) in enumerate(pairs) if old != new] == [block]
            assert after.digest != before.digest


# --- Differences ----------------------------------------------------------------------------------


def test_a_comparison_names_what_was_added_removed_and_changed() -> None:
    old = build([("a", 1), ("b", 2), ("c", 3), ("d", 4)])
    new = build([("a", 1), ("b", 9), ("d", 4), ("e", 5), ("f", 0)])
    assert compare(old, new) == (["e", "f"], ["c"], ["b"])
    assert compare(old, new)._fields == ("added", "removed", "changed")


def test_a_manifest_does_not_differ_from_itself_nor_by_order() -> None:
    assert compare(build(FEW), build(FEW)) == ([], [], [])
    assert compare(build(FEW), build(FEW[::-1])) == ([], [], [])


@given(old=listings, new=listings)
def test_a_comparison_explains_the_whole_difference(
    old: list[tuple[str, int]], new: list[tuple[str, int]]
) -> None:
    added, removed, changed = compare(build(old), build(new))
    sizes = dict(new)
    patched = {name: size for name, size in old if name not in removed}
    patched.update((name, sizes[name]) for name in [*added, *changed])
    assert patched == sizes
    assert set(removed).isdisjoint(sizes)
    assert set(added).isdisjoint(dict(old))


# --- Files ----------------------------------------------------------------------------------------


@given(entries=listings)
def test_a_manifest_comes_back_from_its_files(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("state")
    manifest = build(entries)
    manifest.save(root)
    loaded = Manifest.load(root, manifest.digest)
    assert (loaded.digest, loaded.blocks) == (manifest.digest, manifest.blocks)
    assert [loaded[index] for index in range(len(loaded))] == entries


def test_the_columns_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    digest = build(FEW).save(tmp_path).name
    loaded = Manifest.load(tmp_path, digest)
    for column in (loaded.sizes, loaded.offsets, loaded.names):
        assert isinstance(column.base, np.memmap)
        assert not column.flags.writeable
    assert loaded.names_of(np.array([2, 1], dtype=np.uint64)) == ["ü/ß 3.jpg", "a/2.jpg"]


def test_the_folder_is_named_by_the_digest_and_says_what_it_holds(tmp_path: Path) -> None:
    manifest = build(FEW)
    folder = manifest.save(tmp_path / "state" / "manifests")
    assert folder == tmp_path / "state" / "manifests" / manifest.digest
    assert sorted(os.listdir(folder)) == ["header.json", "names.npy", "offsets.npy", "sizes.npy"]
    assert json.loads((folder / "header.json").read_text()) == {
        "format": 1,
        "digest": manifest.digest,
        "length": 3,
        "total_bytes": 10 + 2**40,
        "blocks": manifest.blocks,
    }


def test_the_digest_does_not_depend_on_where_the_files_are(tmp_path: Path) -> None:
    here, there = build(FEW).save(tmp_path / "here"), build(FEW).save(tmp_path / "there")
    assert here.name == there.name
    for name in os.listdir(here):
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_saving_twice_writes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(FEW).save(tmp_path)

    def write_again(*_: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(np, "save", write_again)
    assert build(FEW).save(tmp_path) == folder
    assert os.listdir(tmp_path) == [folder.name]


def test_a_save_that_loses_the_race_takes_the_files_of_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    winners: list[Path] = []

    def rename_after_another(self: Path, target: Path) -> Path:
        if not winners:
            winners.append(target)
            build(FEW).save(tmp_path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    folder = build(FEW).save(tmp_path)
    assert winners == [folder]
    assert os.listdir(tmp_path) == [folder.name]
    assert len(Manifest.load(tmp_path, folder.name)) == 3


def test_many_saves_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    num_threads = 8
    together = threading.Barrier(num_threads)

    def save() -> Path:
        manifest = build(numbered(1000))
        together.wait(timeout=30)
        return manifest.save(tmp_path)

    with ThreadPoolExecutor(num_threads) as pool:
        folders = {future.result() for future in [pool.submit(save) for _ in range(num_threads)]}
    (folder,) = folders
    assert os.listdir(tmp_path) == [folder.name]
    assert len(Manifest.load(tmp_path, folder.name)) == 1000


def test_a_save_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        build(FEW).save(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_was_never_saved_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path, build(FEW).digest)


def assert_refused(root: Path, digest: str) -> None:
    with pytest.raises(ManifestMismatchError) as refused:
        Manifest.load(root, digest)
    assert str(root / digest) in str(refused.value)
    assert "remove that folder, it is made anew" in str(refused.value)


@pytest.mark.parametrize("column", ["sizes", "offsets", "names"])
def test_a_changed_byte_of_any_column_is_noticed(tmp_path: Path, column: str) -> None:
    manifest = build(FEW)
    path = manifest.save(tmp_path) / f"{column}.npy"
    whole = path.read_bytes()
    for at in range(len(whole) - getattr(manifest, column).nbytes, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert_refused(tmp_path, manifest.digest)


@pytest.mark.parametrize("column", ["sizes", "offsets", "names"])
def test_a_truncated_column_is_noticed(tmp_path: Path, column: str) -> None:
    # Length 0 is what a crash of the machine leaves of a file that was not yet on the disk.
    manifest = build(FEW)
    path = manifest.save(tmp_path) / f"{column}.npy"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(tmp_path, manifest.digest)


@pytest.mark.filterwarnings("ignore:Data type alias:DeprecationWarning")
@pytest.mark.parametrize("column", ["sizes", "offsets", "names"])
def test_a_changed_bit_of_a_header_is_noticed_or_harmless(tmp_path: Path, column: str) -> None:
    manifest = build(FEW)
    path = manifest.save(tmp_path) / f"{column}.npy"
    whole = path.read_bytes()
    num_refused = 0
    for at in range(128):
        for bit in (4, 16, 64):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                loaded = Manifest.load(tmp_path, manifest.digest)
            except ManifestMismatchError:
                num_refused += 1
                continue
            assert [loaded[index] for index in range(3)] == FEW
            assert getattr(loaded, column).dtype == getattr(manifest, column).dtype
    assert num_refused > 300


@pytest.mark.parametrize("column", ["sizes", "offsets", "names"])
def test_a_missing_column_is_noticed(tmp_path: Path, column: str) -> None:
    manifest = build(FEW)
    (manifest.save(tmp_path) / f"{column}.npy").unlink()
    assert_refused(tmp_path, manifest.digest)


def test_a_whole_manifest_under_the_name_of_another_is_noticed(tmp_path: Path) -> None:
    folder = build(FEW).save(tmp_path)
    other = build(FEW[:2])
    folder.rename(tmp_path / other.digest)
    with pytest.raises(ManifestMismatchError, match=f"content of {folder.name[:12]}…"):
        Manifest.load(tmp_path, other.digest)


def test_a_column_that_would_have_to_be_unpickled_is_refused(tmp_path: Path) -> None:
    manifest = build(FEW)
    folder = manifest.save(tmp_path)
    np.save(folder / "sizes.npy", np.array([print], dtype=object), allow_pickle=True)
    assert_refused(tmp_path, manifest.digest)


def test_a_manifest_can_be_held_weakly_and_frees_its_files(tmp_path: Path) -> None:
    digest = build(FEW).save(tmp_path).name
    loaded: Manifest | None = Manifest.load(tmp_path, digest)
    seen = weakref.ref(loaded)
    loaded = None
    gc.collect()
    assert seen() is None


# --- Checksums and versions -----------------------------------------------------------------------


def stored(checksums: list[bytes], versions: list[bytes]) -> Manifest:
    plain = build(FEW)
    return Manifest(
        plain.sizes,
        plain.offsets,
        plain.names,
        np.array(checksums, dtype=np.bytes_),
        np.array(versions, dtype=np.bytes_),
    )


def test_checksums_belong_to_the_digest_and_versions_do_not() -> None:
    one = stored([b"x", b"y", b""], [b"1", b"1", b"1"])
    assert one.digest != build(FEW).digest
    assert one.digest == stored([b"x", b"y", b""], [b"2", b"", b"3"]).digest
    assert one.digest != stored([b"x", b"z", b""], [b"1", b"1", b"1"]).digest
    # A move of bytes from one row to the next is another content.
    assert (
        stored([b"xy", b"", b""], [b""] * 3).digest != stored([b"x", b"y", b""], [b""] * 3).digest
    )


def test_checksums_and_versions_come_back_from_files(tmp_path: Path) -> None:
    manifest = stored([b"x", b"yy", b""], [b"1", b"", b"12"])
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path, manifest.digest)
    indices = np.array([2, 1], dtype=np.uint64)
    assert loaded.checksums_of(indices) == [b"", b"yy"]
    assert loaded.versions_of(indices) == [b"12", b""]
    assert build(FEW).checksums_of(indices) == build(FEW).versions_of(indices) == [b"", b""]


@pytest.mark.parametrize("column", ["checksums", "versions"])
def test_a_column_of_another_kind_or_length_is_refused(tmp_path: Path, column: str) -> None:
    manifest = stored([b"x", b"y", b"z"], [b"1", b"1", b"1"])
    folder = manifest.save(tmp_path)
    wrong: list[Any] = [np.zeros(3, dtype=np.int64), np.array([b"x"], dtype=np.bytes_)]
    for values in wrong:
        np.save(folder / f"{column}.npy", values)
        assert_refused(tmp_path, manifest.digest)


def test_newer_versions_of_the_same_data_replace_the_older_ones(tmp_path: Path) -> None:
    stored([b"x", b"y", b"z"], [b"1", b"1", b"1"]).save(tmp_path)
    newer = stored([b"x", b"y", b"z"], [b"1", b"2", b"1"])
    folder = newer.save(tmp_path)
    loaded = Manifest.load(tmp_path, newer.digest)
    assert loaded.versions_of(np.array([1], dtype=np.uint64)) == [b"2"]
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_comparison_says_which_checksums_differ() -> None:
    old = stored([b"x", b"y", b""], [b""] * 3)
    new = stored([b"x", b"z", b"w"], [b""] * 3)
    assert compare(old, new) == ([], [], [FEW[1][0]]), "an unknown one says nothing"
    assert compare(old, build(FEW)) == ([], [], [])
