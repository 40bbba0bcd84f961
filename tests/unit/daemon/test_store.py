from __future__ import annotations

import gc
import json
import os
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.errors import ManifestMismatchError
from headrace.manifest import Manifest
from headrace.sources import Objects
from headrace_daemon.source.store import ManifestStore
from tests.support.files import files_of_at_most

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = Objects("/data/train", suffix=".jpg")
OLD = [(b"a.jpg", 1), (b"b.jpg", 2)]
NEW = [*OLD, (b"c.jpg", 3)]


def pointer_of(root: Path) -> Path:
    (path,) = (root / "sources").iterdir()
    return path


def test_a_source_that_was_never_listed_has_no_manifest(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path / "not" / "there")
    assert store.current(SOURCE) is None
    assert not (tmp_path / "not").exists()


def test_what_is_kept_is_current_and_mapped_from_its_files(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path)
    built = Manifest.build(OLD)
    kept = store.keep(SOURCE, built)
    assert kept.digest == built.digest
    assert isinstance(kept.sizes.base, np.memmap)
    assert store.current(SOURCE) is kept
    assert store.load(built.digest) is kept


def test_what_is_kept_outlives_the_process(tmp_path: Path) -> None:
    digest = ManifestStore(tmp_path).keep(SOURCE, Manifest.build(OLD)).digest
    again = ManifestStore(tmp_path).current(SOURCE)
    assert again is not None
    assert again.digest == digest


def test_a_source_listed_anew_has_the_new_manifest_and_the_store_both(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path)
    old = store.keep(SOURCE, Manifest.build(OLD))
    new = store.keep(SOURCE, Manifest.build(NEW))
    assert store.current(SOURCE) is new
    assert len(store.load(old.digest)) == 2


def test_a_source_is_known_by_all_manifests_that_it_ever_had(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path)
    old, new = Manifest.build(OLD), Manifest.build(NEW)
    foreign = store.keep(Objects("/data/val"), Manifest.build([(b"x", 1)]))
    for manifest in (old, new, old, new):
        store.keep(SOURCE, manifest)
    again = ManifestStore(tmp_path)
    assert again.has_had(SOURCE, old.digest)
    assert again.has_had(SOURCE, new.digest)
    assert not again.has_had(SOURCE, foreign.digest)
    assert not again.has_had(Objects("/data/test"), old.digest)
    assert not again.has_had(SOURCE, "")
    current = again.current(SOURCE)
    assert current is not None
    assert current.digest == new.digest


def test_sources_are_told_apart_by_all_that_they_say(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path)
    sources = [
        Objects("/data/train"),
        Objects("/data/val"),
        Objects("/data/train", suffix=".jpg"),
        Objects("/data/train", suffix=(".jpg", ".png")),
        Objects("/data/train", recursive=False),
    ]
    for index, source in enumerate(sources):
        assert store.current(source) is None
        store.keep(source, Manifest.build([(b"x", index)]))
    found = [store.current(source) for source in sources]
    assert [manifest and manifest[0].size for manifest in found] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "uri", ["/data//train/", "file:///data/train", "train", "/data/val/../train"]
)
def test_one_folder_is_one_source_however_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    store = ManifestStore(tmp_path)
    kept = store.keep(Objects("/data/train"), Manifest.build(OLD))
    monkeypatch.setattr(os, "getcwd", lambda: "/data")
    assert store.current(Objects(uri)) is kept


def test_a_manifest_is_loaded_once_while_it_is_used_and_freed_after(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path)
    digest = store.keep(SOURCE, Manifest.build(OLD)).digest
    used = store.load(digest)
    assert store.load(digest) is used
    seen = weakref.ref(used)
    del used
    gc.collect()
    assert seen() is None
    assert len(store.load(digest)) == 2


def test_a_manifest_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ManifestStore(tmp_path).load("ab" * 32)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\0",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"manifest": 5}',
        b'{"manifest": null}',
        b'{"manifest": ["a"], "earlier": 3}',
        b'{"manifest": "gone"}',
    ],
)
def test_a_damaged_pointer_means_that_the_source_is_listed_anew(
    tmp_path: Path, content: bytes
) -> None:
    store = ManifestStore(tmp_path)
    built = Manifest.build(OLD)
    store.keep(SOURCE, built)
    pointer_of(tmp_path).write_bytes(content)
    assert store.current(SOURCE) is None
    assert not store.has_had(SOURCE, built.digest)
    store.keep(SOURCE, built)
    assert store.current(SOURCE) is not None
    assert store.has_had(SOURCE, built.digest)


def test_a_manifest_whose_folder_is_gone_means_that_the_source_is_listed_anew(
    tmp_path: Path,
) -> None:
    digest = ManifestStore(tmp_path).keep(SOURCE, Manifest.build(OLD)).digest
    folder = tmp_path / "manifests" / digest
    folder.rename(tmp_path / "elsewhere")
    store = ManifestStore(tmp_path)
    assert store.current(SOURCE) is None
    store.keep(SOURCE, Manifest.build(OLD))
    assert store.current(SOURCE) is not None


def test_a_damaged_manifest_is_an_error_and_not_another_order(tmp_path: Path) -> None:
    digest = ManifestStore(tmp_path).keep(SOURCE, Manifest.build(OLD)).digest
    folder = tmp_path / "manifests" / digest
    (folder / "sizes.npy").write_bytes(b"")
    store = ManifestStore(tmp_path)
    with pytest.raises(ManifestMismatchError, match=f"{folder} cannot be read"):
        store.current(SOURCE)


def test_a_pointer_says_for_people_which_source_it_is_of(tmp_path: Path) -> None:
    kept = ManifestStore(tmp_path).keep(SOURCE, Manifest.build(OLD))
    pointer = json.loads(pointer_of(tmp_path).read_text())
    assert pointer["source"]["uri"] == "/data/train"
    assert pointer["source"]["suffix"] == [".jpg"]
    assert pointer["manifest"] == kept.digest


def test_nothing_half_written_is_left_in_the_state_folder(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path)
    for entries in (OLD, NEW, OLD):
        store.keep(SOURCE, Manifest.build(entries))
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
    assert len(list((tmp_path / "sources").iterdir())) == 1
    assert len(list((tmp_path / "manifests").iterdir())) == 2


def test_a_disk_that_is_full_for_a_pointer_leaves_the_earlier_one(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path)
    kept = store.keep(SOURCE, Manifest.build(OLD))
    later = Manifest.build(NEW)
    later.save(store.folder)
    with files_of_at_most(10), pytest.raises(OSError, match="File too large"):
        store.keep(SOURCE, later)
    assert len(os.listdir(tmp_path / "sources")) == 1
    assert ManifestStore(tmp_path).current(SOURCE).digest == kept.digest  # type: ignore[union-attr]


def test_a_disk_that_is_full_for_versions_leaves_the_earlier_ones(tmp_path: Path) -> None:
    plain = Manifest.build(OLD)
    old, new = (
        Manifest(plain.sizes, plain.offsets, plain.names, None, np.array([version] * 2, "S5"))
        for version in (b"1", b"2")
    )
    folder = old.save(tmp_path)
    files = sorted(os.listdir(folder))
    with files_of_at_most(10), pytest.raises(OSError, match="File too large"):
        new.save(tmp_path)
    assert sorted(os.listdir(folder)) == files
    assert Manifest.load(tmp_path, old.digest).versions.tolist() == [b"1"] * 2  # type: ignore[union-attr]
