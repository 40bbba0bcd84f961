"""Lists of samples that a process makes: the same ones, the same refusals, and nothing left."""

from __future__ import annotations

import asyncio
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from headrace.shards import Shards
from headrace_daemon.errors import SamplesError
from headrace_daemon.source import inventory as module
from headrace_daemon.source.inventory import Inventory
from headrace_daemon.source.shards.indexstore import Shard
from headrace_daemon.source.store import ManifestStore
from tests.support.loops import run, until
from tests.support.sources import store_without_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.loops import Loop

COUNT = 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(COUNT):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name in (f"{shard}a.jpg", f"{shard}a.cls", f"{shard}b.jpg", f"{shard}b.cls"):
                info = tarfile.TarInfo(name)
                info.size = shard + 1
                tar.addfile(info, io.BytesIO(b"x" * info.size))
    return folder


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_ELSEWHERE", 0)


@asynccontextmanager
async def inventory(state: Path) -> AsyncIterator[Inventory]:
    with ThreadPoolExecutor(2) as executor:
        async with store_without_cluster(executor) as ais:
            yield Inventory(ManifestStore(state), ais=ais, executor=executor)


async def taken(source: Shards, state: Path) -> tuple[str, list[bytes]]:
    """Return the digest of a list, and what tells a change of each shard."""
    async with inventory(state) as one:
        manifest = await one.take(source)
    assert manifest.placement is not None
    versions = manifest.placement.table.versions
    assert versions is not None
    return manifest.digest, versions.tolist()


def left_in(state: Path) -> list[str]:
    return [path.name for path in (state / "manifests").iterdir() if path.name.startswith(".")]


def test_a_process_makes_the_same_list(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    source = Shards(f"{data}/")
    here = run(taken(source, tmp_path / "here"), loop)
    assert len(set(here[1])) == COUNT
    monkeypatch.setattr(module, "MIN_ELSEWHERE", 0)
    monkeypatch.setattr(module, "list_samples", None)  # it is not made here
    assert run(taken(source, tmp_path / "there"), loop) == here
    assert left_in(tmp_path / "there") == []


@pytest.mark.usefixtures("elsewhere")
def test_a_refusal_of_the_process_is_that_of_a_list_made_here(data: Path, tmp_path: Path) -> None:
    source = Shards(f"{data}/", fields=["jpg", "png"])
    with pytest.raises(SamplesError, match=r"sample '0a' of shard '0\.tar' lacks field 'png'"):
        run(taken(source, tmp_path / "state"))
    assert left_in(tmp_path / "state") == []


@pytest.mark.usefixtures("elsewhere")
def test_a_shard_without_an_index_is_left_out_there_too(data: Path, tmp_path: Path) -> None:
    (data / "1.tar").write_bytes(b"no tar" * 200)

    async def main() -> int:
        async with inventory(tmp_path / "state") as one:
            return len(await one.take(Shards(f"{data}/", on_bad_shard="skip")))

    assert run(main()) == 2 * (COUNT - 1)


@pytest.mark.usefixtures("elsewhere")
def test_what_a_process_cannot_make_is_made_here(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("headrace_daemon.source.shards.elsewhere.__name__", "no.such.module")
    assert run(taken(Shards(f"{data}/"), tmp_path / "state"))
    assert "list is made here" in caplog.text


@pytest.mark.usefixtures("elsewhere")
def test_a_process_that_nobody_waits_for_is_gone(data: Path, tmp_path: Path, loop: Loop) -> None:
    before = {child.pid for child in psutil.Process().children()}

    def started() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.pid not in before]

    async def main() -> None:
        async with inventory(tmp_path / "state") as one:
            work = asyncio.get_running_loop().create_task(one.take(Shards(f"{data}/")), name="take")
            await until(started)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    run(main(), loop)
    psutil.wait_procs(started(), timeout=10)
    assert started() == []
    assert left_in(tmp_path / "state") == []


@pytest.mark.usefixtures("elsewhere")
def test_shards_whose_indices_nothing_keeps_are_listed_here_without_a_word(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Shard, "is_certain", False)
    assert run(taken(Shards(f"{data}/"), tmp_path / "state"))
    assert "list is made here" not in caplog.text
