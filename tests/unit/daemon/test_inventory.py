"""The inventory of a source: the lists of its selections, one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from headrace.shards import Shards
from headrace.sources import Objects
from headrace_daemon.errors import ObjectMissingError, SourceMissingError
from headrace_daemon.fetch.fetcher import Fetcher
from headrace_daemon.source import inventory
from headrace_daemon.source.inventory import Inventory, list_folders, list_source
from headrace_daemon.source.reader import ReadRequest
from headrace_daemon.source.store import ManifestStore
from tests.support.files import content
from tests.support.loops import LOOPS, run
from tests.support.reading_ais import open_store
from tests.support.shards import tar_of
from tests.support.sources import folders, store_without_cluster
from tests.support.standin import StandIn

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.manifest import Manifest
    from headrace_daemon.source.progress import Progress
    from tests.support.loops import Loop


def fill(root: Path, **folders: int) -> list[str]:
    """Make folders with some files each, and return the folders' paths."""
    for folder, number in folders.items():
        (root / folder).mkdir()
        for one in range(number):
            name = f"{one:02}"
            (root / folder / name).write_bytes(content(f"{folder} {name}", one))
    return [str(root / folder) for folder in folders]


def names(manifest: Manifest) -> list[str]:
    return [manifest.name(index) for index in range(len(manifest))]


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_lists_are_put_together_piece_by_piece(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_PIECE", piece)
    source = Objects(fill(tmp_path, b=4, a=7))
    manifest = list_folders(source, tmp_path / "manifests")
    assert names(manifest) == [f"b/{n:02}" for n in range(4)] + [f"a/{n:02}" for n in range(7)]
    assert manifest.sizes.tolist() == [*range(4), *range(7)]
    assert (manifest.checksums, manifest.versions) == (None, None)
    # The lists of the folders alone are not kept.
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == [manifest.digest]


def test_nothing_is_left_of_a_source_of_which_a_part_is_missing(tmp_path: Path) -> None:
    (first,) = fill(tmp_path, a=2)
    with pytest.raises(SourceMissingError, match="folder /nowhere does not exist"):
        list_folders(Objects([first, "/nowhere"]), tmp_path / "manifests")
    assert not list((tmp_path / "manifests").iterdir())


def test_copies_elsewhere_have_the_same_manifest(tmp_path: Path) -> None:
    found = []
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        source = Objects(fill(tmp_path / place, b=2, a=3))
        found.append(list_folders(source, tmp_path / "manifests").digest)
    assert found[0] == found[1]


def test_progress_goes_on_over_the_edges(tmp_path: Path) -> None:
    told: list[int] = []
    list_folders(Objects(fill(tmp_path, a=2, b=3, c=1)), tmp_path / "manifests", told.append)
    assert told == [2, 5, 6]


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [1, 2, 3]), (4, [1, 2, 3, 4]), (7, [2, 4, 6, 7]), (9, [3, 6, 9])]
)
def test_it_is_told_so_often_at_most_how_far_an_indexing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, expected: list[int]
) -> None:
    monkeypatch.setattr(inventory, "_TOLD", 4)
    (tmp_path / "shards").mkdir()
    for number in range(count):
        (tmp_path / f"shards/{number}.tar").write_bytes(tar_of([(f"{number}.x", b"x")]))
    told: list[Progress] = []

    async def take() -> None:
        manifests = ManifestStore(tmp_path / "state")
        with ThreadPoolExecutor(1) as executor:
            async with store_without_cluster(executor) as ais:
                taker = Inventory(manifests, ais=ais, executor=executor, tell=told.append)
                await taker.take(Shards(f"{tmp_path}/shards/"))

    run(take())
    assert [one.done for one in told if one.kind == "indexing"] == expected


@pytest.mark.parametrize("loop", LOOPS)
def test_each_sample_is_read_from_its_own_root(tmp_path: Path, loop: Loop) -> None:
    source = Objects(fill(tmp_path, a=3, b=4))

    async def read(executor: ThreadPoolExecutor) -> dict[str, bytes]:
        catalog = folders(ManifestStore(tmp_path / "state"), executor)
        opened = await catalog.open(source)
        requests = [
            ReadRequest(entry.name, memoryview(bytearray(entry.size)))
            for entry in map(opened.manifest.__getitem__, range(len(opened.manifest)))
        ]
        await Fetcher(4).fetch(opened.reader, requests[::-1])
        return {request.name: bytes(request.target) for request in requests}

    with ThreadPoolExecutor(2) as executor:
        found = run(read(executor), loop)
    assert found == {
        f"{folder}/{n:02}": content(f"{folder} {n:02}", n)
        for folder, number in {"a": 3, "b": 4}.items()
        for n in range(number)
    }


@pytest.mark.parametrize("loop", LOOPS)
def test_folders_and_buckets_make_one_manifest(tmp_path: Path, loop: Loop) -> None:
    (folder,) = fill(tmp_path, a=2)
    told: list[int] = []

    async def list_it(server: StandIn) -> Manifest:
        source = Objects(
            [folder, "ais://b/", "ais://c"],
            prefixes={"ais://b/": ["y", "x"]},
            names={"ais://c": ["1"]},
        )
        with ThreadPoolExecutor(2) as executor:
            async with open_store(server.endpoint) as store:
                return await list_source(
                    source,
                    tmp_path / "manifests",
                    ais=store,
                    executor=executor,
                    progress=told.append,
                )

    with StandIn() as server:
        for bucket in ("b", "c"):
            server.create_bucket(bucket)
            server.put_many(bucket, {"x/1": b"1", "y/1": b"22", "y/2": b"", "1": b"4444"})
        manifest = run(list_it(server), loop)
        checksum = server.stored("b", "x/1").checksum.encode()
    assert names(manifest) == ["a/00", "a/01", "b/y/1", "b/y/2", "b/x/1", "c/1"]
    assert manifest.sizes.tolist() == [0, 1, 2, 0, 1, 4]
    assert manifest.checksums is not None
    assert [bool(one) for one in manifest.checksums] == [False, False, True, True, True, True]
    assert manifest.checksums[4] == checksum
    assert told == sorted(told)
    assert told[-1] == 6
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == [manifest.digest]


def test_a_given_object_that_is_missing_is_named(tmp_path: Path) -> None:
    async def list_it(server: StandIn) -> None:
        with ThreadPoolExecutor(2) as executor:
            async with open_store(server.endpoint) as store:
                source = Objects("ais://b", names=["1", "2"])
                await list_source(source, tmp_path, ais=store, executor=executor)

    with StandIn() as server:
        server.create_bucket("b")
        server.put("b", "1", b"1")
        with pytest.raises(ObjectMissingError, match=r"ais://b/2 is in names= and not in"):
            run(list_it(server))
