from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from headrace.errors import ManifestMismatchError
from headrace.sources import Objects
from headrace_daemon.errors import SourceMissingError, StateFolderError
from headrace_daemon.source import inventory as module
from headrace_daemon.source.local import LocalReader, list_folder
from headrace_daemon.source.reader import ReadRequest
from headrace_daemon.source.store import ManifestStore
from tests.support.loops import run, turns
from tests.support.sources import folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headrace.manifest import Manifest
    from headrace.selections import Selection
    from headrace_daemon.source.progress import Progress
    from tests.support.loops import Loop


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"22")
    return folder


class Listings:
    """Stands before the listing of folders: counts, and holds them until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._lock = threading.Lock()
        monkeypatch.setattr(module, "list_folder", self._list)

    def _list(self, source: Selection, progress: Callable[[int], None]) -> Manifest:
        with self._lock:
            self.paths.append(source.path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.set()
        assert self.go_on.wait(timeout=30)
        try:
            return list_folder(source, progress)
        finally:
            with self._lock:
                self.at_once -= 1

    async def wait_until_entered(self) -> None:
        assert await asyncio.get_running_loop().run_in_executor(None, self.entered.wait, 30)


def test_a_source_is_opened_with_its_manifest_and_a_reader_of_it(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor, loop: Loop
) -> None:
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    target = bytearray(2)

    async def open_and_read() -> Manifest:
        source = await catalog.open(Objects(str(data)))
        assert isinstance(source.reader, LocalReader)
        await source.reader.read([ReadRequest("b", memoryview(target))])
        return source.manifest

    manifest = run(open_and_read(), loop)
    assert [manifest[index] for index in range(2)] == [("a", 1), ("b", 2)]
    assert target == b"22"


def test_a_source_is_listed_once_however_many_ask_at_the_same_time(
    tmp_path: Path,
    data: Path,
    threads: ThreadPoolExecutor,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listings = Listings(monkeypatch)
    catalog = folders(ManifestStore(tmp_path / "state"), threads)

    async def open_many() -> list[Manifest]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(catalog.open(Objects(str(data))), name=f"open {number}")
                for number in range(10)
            ]
        return [task.result().manifest for task in tasks]

    manifests = run(open_many(), loop)
    assert listings.paths == [str(data)]
    assert len({id(manifest) for manifest in manifests}) == 1


def test_files_that_come_after_the_listing_change_nothing_also_after_a_restart(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor
) -> None:
    source, state = Objects(str(data)), tmp_path / "state"
    catalog = folders(ManifestStore(state), threads)
    before = run(catalog.open(source)).manifest.digest
    (data / "c").write_bytes(b"333")
    (data / "a").unlink()
    assert run(catalog.open(source)).manifest.digest == before
    assert run(folders(ManifestStore(state), threads).open(source)).manifest.digest == before


def test_progress_of_a_listing_is_passed_on(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_daemon.source.local._PROGRESS_EVERY", 1)
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    told: list[Progress] = []
    run(catalog.open(Objects(str(data)), tell=told.append))
    assert [far.text for far in told] == ["1 objects listed", "2 objects listed"]


def test_a_source_that_cannot_be_listed_is_refused_and_can_be_mended(
    tmp_path: Path, threads: ThreadPoolExecutor, loop: Loop
) -> None:
    source = Objects(str(tmp_path / "later"))
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    with pytest.raises(SourceMissingError, match="does not exist"):
        run(catalog.open(source), loop)
    (tmp_path / "later").mkdir()
    with pytest.raises(SourceMissingError, match="has no file"):
        run(catalog.open(source), loop)
    (tmp_path / "later/a").write_bytes(b"")
    fresh = folders(ManifestStore(tmp_path / "state"), threads)
    assert len(run(fresh.open(source), loop).manifest) == 1


def test_a_state_folder_that_takes_no_manifest_is_named(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor, loop: Loop
) -> None:
    (tmp_path / "state").write_text("in the way")
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    with pytest.raises(StateFolderError) as raised:
        run(catalog.open(Objects(str(data))), loop)
    assert str(raised.value).startswith(f"the manifest of {data} cannot be kept in ")
    assert "Not a directory" in str(raised.value)
    assert "[daemon] state_dir" in str(raised.value)


# --- The manifest of a cursor ---------------------------------------------------------------------


def test_the_manifest_of_a_cursor_is_taken_also_when_the_source_was_listed_anew(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor
) -> None:
    source, store = Objects(str(data)), ManifestStore(tmp_path / "state")
    catalog = folders(store, threads)
    before = run(catalog.open(source)).manifest.digest
    (data / "c").write_bytes(b"333")
    store.keep(
        source, list_folder(source.selections[0])
    )  # what `headrace index SOURCE --refresh` does
    assert run(catalog.open(source, digest=before)).manifest.digest == before
    assert run(catalog.open(source)).manifest.digest != before


def test_a_manifest_whose_files_are_gone_is_made_anew_for_the_cursor_too(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor
) -> None:
    source, state = Objects(str(data)), tmp_path / "state"
    digest = run(folders(ManifestStore(state), threads).open(source)).manifest.digest
    (state / "manifests" / digest).rename(tmp_path / "elsewhere")
    again = run(folders(ManifestStore(state), threads).open(source, digest=digest))
    assert again.manifest.digest == digest


def test_a_copy_of_the_data_elsewhere_has_the_manifest_of_the_cursor(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor
) -> None:
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    digest = run(catalog.open(Objects(str(data)))).manifest.digest
    data.rename(tmp_path / "moved")
    moved = run(catalog.open(Objects(str(tmp_path / "moved")), digest=digest))
    assert moved.manifest.digest == digest


def test_a_cursor_of_other_data_is_refused_with_both_digests(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor
) -> None:
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    digest = run(catalog.open(Objects(str(data)))).manifest.digest
    with pytest.raises(ManifestMismatchError) as refused:
        run(catalog.open(Objects(str(data)), digest="cd" * 32))
    text = str(refused.value)
    assert "manifest cdcdcdcdcdcd…" in text
    assert f"{data} has {digest[:12]}… (2 samples, 3 bytes)" in text
    assert "restore the data, or start anew with seek()" in text


def test_a_cursor_of_another_folder_is_refused_although_its_manifest_is_in_the_store(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor
) -> None:
    # Both have files of these names and sizes: what is read would be of the wrong folder.
    other = tmp_path / "other"
    other.mkdir()
    for name, content in {"a": b"x", "b": b"yy", "c": b"zzz"}.items():
        (other / name).write_bytes(content)
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    digest = run(catalog.open(Objects(str(data)))).manifest.digest
    with pytest.raises(ManifestMismatchError, match=f"{other} has "):
        run(catalog.open(Objects(str(other)), digest=digest))


@pytest.mark.parametrize("digest", ["", ".", "..", "../sources", "/", "a/b", "\0", "x" * 5000])
def test_a_digest_is_never_a_path(
    tmp_path: Path, data: Path, threads: ThreadPoolExecutor, digest: str
) -> None:
    catalog = folders(ManifestStore(tmp_path / "state"), threads)
    run(catalog.open(Objects(str(data))))
    with pytest.raises(ManifestMismatchError, match="the cursor belongs to manifest"):
        run(catalog.open(Objects(str(data)), digest=digest))


# --- Cancellation ---------------------------------------------------------------------------------


def test_who_asks_again_after_a_cancellation_waits_for_the_listing_that_goes_on(
    tmp_path: Path, data: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = Listings(monkeypatch)
    listings.go_on.clear()

    async def cancel_and_ask_again() -> Manifest:
        catalog = folders(ManifestStore(tmp_path / "state"), pool)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(catalog.open(Objects(str(data))), name="first")
            await listings.wait_until_entered()
            first.cancel()
            await turns(3)
            second = group.create_task(catalog.open(Objects(str(data))), name="second")
            await turns(3)
            assert not second.done()
            listings.go_on.set()
        assert first.cancelled()
        return second.result().manifest

    with ThreadPoolExecutor(4) as pool:
        manifest = run(cancel_and_ask_again(), loop)
    assert len(manifest) == 2
    assert listings.most_at_once == 1
    assert listings.paths == [str(data)]


def test_a_listing_that_fails_after_its_asker_was_cancelled_holds_up_nobody(
    tmp_path: Path, data: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = Listings(monkeypatch)
    listings.go_on.clear()

    async def cancel_a_listing_that_fails() -> Manifest:
        catalog = folders(ManifestStore(tmp_path / "state"), pool)
        missing = Objects(str(tmp_path / "missing"))
        async with asyncio.TaskGroup() as group:
            first = group.create_task(catalog.open(missing), name="first")
            await listings.wait_until_entered()
            first.cancel()
            listings.go_on.set()
            return (await catalog.open(Objects(str(data)))).manifest

    with ThreadPoolExecutor(1) as pool:
        assert len(run(cancel_a_listing_that_fails(), loop)) == 2


def test_askers_that_give_up_while_they_wait_take_no_thread(
    tmp_path: Path, data: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = Listings(monkeypatch)
    listings.go_on.clear()

    async def give_up_ten_times() -> None:
        catalog = folders(ManifestStore(tmp_path / "state"), pool)
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                task = group.create_task(catalog.open(Objects(str(data))), name=f"open {number}")
                await listings.wait_until_entered()
                await turns(3)
                task.cancel()
                await turns(3)
                assert task.cancelled()
            # One thread lists; the other is free for whoever reads.
            free = asyncio.get_running_loop().run_in_executor(pool, threading.get_ident)
            assert await asyncio.wait_for(free, 10)
            listings.go_on.set()
        assert len((await catalog.open(Objects(str(data)))).manifest) == 2

    with ThreadPoolExecutor(2) as pool:
        try:
            run(give_up_ten_times(), loop)
        finally:
            listings.go_on.set()
    assert listings.paths == [str(data)]
