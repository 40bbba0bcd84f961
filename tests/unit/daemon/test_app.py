"""The whole daemon in one process or the next: real files, a real socket, and nothing left."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from headrace.client import Channel
from headrace.plans import Shuffled
from headrace.protocol import messages as m
from headrace.sources import Objects, Stream
from headrace_daemon import __version__
from headrace_daemon.app import App
from headrace_daemon.settings import DaemonSettings, FetchSettings, Settings
from headrace_daemon.transport.listener import bind
from tests.support.commands import serving
from tests.support.loops import run, until
from tests.support.reading import value_of
from tests.support.talking import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.loops import Loop


@pytest.fixture
def settings(socket_path: Path) -> Settings:
    """Return the settings of a daemon with one stream of 50 files of different sizes."""
    folder = socket_path.parent
    data = folder / "data"
    data.mkdir()
    for number in range(50):
        name = f"s{number:03}"
        (data / name).write_bytes(value_of(name, 37 * number % 300))
    stream = Stream(Objects(os.fspath(data)), Shuffled(batch_size=8, seed=3))
    daemon = DaemonSettings(
        socket=os.fspath(socket_path),
        state_dir=os.fspath(folder / "state"),
        memory="1MB",
        grace_s=0,
    )
    return Settings(
        daemon=daemon,
        fetch=FetchSettings(max_in_flight=3),
        streams={"train": stream},
        default_stream="train",
    )


class Running:
    """An app that serves, and clients of it."""

    def __init__(self, app: App, settings: Settings, task: asyncio.Task[None]) -> None:
        self.app = app
        self.task = task
        self._path = settings.daemon.socket
        self._clients: list[Client] = []

    async def greeted(self) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        self._clients.append(Client(sock))
        await asyncio.get_running_loop().sock_connect(sock, self._path)
        return await self._clients[-1].greet()

    def hang_up(self) -> None:
        for client in self._clients:
            client.hang_up()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    app = App(settings, bind(Path(settings.daemon.socket), ""))
    async with asyncio.TaskGroup() as tasks:
        front = Running(app, settings, tasks.create_task(app.run(), name="app"))
        try:
            yield front
        finally:
            app.stop()
            front.hang_up()


def test_epochs_of_real_files_arrive_whole(loop: Loop, settings: Settings) -> None:
    async def main() -> None:
        async with running(settings) as front:
            client = await front.greeted()
            await client.open(credit=100, epochs=3)
            orders = []
            for epoch in range(3):
                batches = [await client.batch() for _ in range(7)]
                assert {batch.epoch for batch in batches} == {epoch}
                orders.append([key for batch in batches for key in batch.keys or ()])
                await client.expect(m.EpochEnd)
            assert (await client.expect(m.End)).reason == "finished"
            assert len({tuple(order) for order in orders}) == 3
            for order in orders:
                assert sorted(order) == [f"s{number:03}" for number in range(50)]

    run(main(), loop)


def test_the_report_counts_what_there_is(loop: Loop, settings: Settings) -> None:
    async def main() -> None:
        async with running(settings) as front:
            client = await front.greeted()
            opened = await client.open(credit=2, prefetch=3)
            sent = [await client.batch() for _ in range(2)]
            (entry,) = front.app._registry.feeds
            await until(lambda: entry.feed.num_ready == 4)
            await client.send(m.Status(request=1))
            report = (await client.expect(m.Report)).report
            assert (report["version"], report["protocol"]) == (__version__, 1)
            assert (report["pid"], report["connections"]) == (os.getpid(), 1)
            assert report["socket"] == settings.daemon.socket
            assert report["memory"] == {
                "budget_bytes": 1_000_000,
                "guaranteed_bytes": 2 * opened.slot_bytes,
                "held_bytes": 4 * opened.slot_bytes,
            }
            (feed,) = report["feeds"]
            assert (feed["stream"], feed["rank"], feed["world_size"]) == ("train", 0, 1)
            assert (feed["epoch"], feed["step"], feed["is_parked"]) == (0, 2, False)
            assert (feed["slots"], feed["max_slots"], feed["ready"]) == (4, 4, 4)
            assert (feed["batches"], feed["samples"], feed["filling"]) == (2, 16, 0)
            sizes = [len(batch.lengths) // 8 for batch in sent]
            assert sum(sizes) == 16
            assert feed["slot_bytes"] == opened.slot_bytes
            assert 0 < feed["bytes"] <= 2 * opened.slot_bytes
            assert min(feed[name] for name in feed if name.endswith("_s")) >= 0

    run(main(), loop)


def test_many_clients_come_and_go_and_nothing_stays(loop: Loop, settings: Settings) -> None:
    wait_for_threads()  # of the daemons before

    async def main() -> None:
        async with running(settings) as front:
            while len(threads_of_ours()) < settings.fetch.max_in_flight:
                await cycle(front)  # for what is made once
            before = facts()
            for _ in range(30):
                await cycle(front)
            assert facts() == before

    async def cycle(front: Running) -> None:
        client = await front.greeted()
        await client.open(credit=3)
        await client.steps(3)
        client.hang_up()
        await until(lambda: not front.app._registry.feeds)
        await until(lambda: not front.app._listener.num_sessions)
        await until(lambda: not front.app._budget.guaranteed_bytes)
        await until(lambda: not front.app._budget.held_bytes)

    def facts() -> tuple[int, int, int]:
        gc.collect()  # a feed and its pool know each other; the mapped manifest goes with them
        descriptors = len(os.listdir("/proc/self/fd"))
        return descriptors, threading.active_count(), len(asyncio.all_tasks())

    run(main(), loop)


def wait_for_threads() -> None:
    for thread in threads_of_ours():
        thread.join(20)


def threads_of_ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("headrace_")]


def test_stopping_ends_threads_and_closes_the_socket(loop: Loop, settings: Settings) -> None:
    async def main() -> None:
        async with running(settings) as front:
            client = await front.greeted()
            await client.open(credit=3)
            await client.steps(3)
            front.app.stop()
            error = await client.expect(m.Error)
            assert error.code == "draining"
            await until(front.task.done)

    wait_for_threads()
    threads = threading.active_count()
    run(main(), loop)
    wait_for_threads()
    assert threading.active_count() == threads


def test_the_configuration_in_force_is_logged_first(
    loop: Loop, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace_daemon")

    async def main() -> None:
        async with running(settings):
            await until(lambda: caplog.records)

    run(main(), loop)
    event, _, text = caplog.records[0].getMessage().partition(" ")
    assert event == "settings"
    assert msgspec.json.decode(text, type=Settings) == settings


# ---- memory of the process -----------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_consumer_that_sleeps_costs_the_budget_and_no_more(socket_path: Path) -> None:
    """L1: what it has without a feed, the budget, and what threads and sockets take."""
    folder = socket_path.parent
    data = folder / "data"
    data.mkdir()
    for number in range(100):
        with (data / f"{number:03}").open("wb") as file:
            file.truncate(4_000_000)
    options = ("--state-dir", folder / "state", "--memory", "64MB", "--allow-source", folder)
    plan = {"type": "Sequential", "batch_size": 1}
    request = m.Open(
        stream={"source": {"uri": os.fspath(data)}, "plan": plan}, credit=1000, prefetch=1000
    )
    with (
        serving("--socket", socket_path, *options) as daemon,
        Channel.connect(os.fspath(socket_path)) as watcher,
        Channel.connect(os.fspath(socket_path)) as sleeper,
    ):
        base = resident_bytes(daemon.process.pid)
        sleeper.send(request)
        while True:
            answer = watcher.request(m.Status())
            assert isinstance(answer, m.Report)
            feeds = answer.report["feeds"]
            # 16 slots of 4 MB: one is being written, the others are full.
            if feeds and feeds[0]["ready"] == 15 and not feeds[0]["filling"]:
                break
        assert answer.report["memory"]["held_bytes"] == 16 * 4_000_000
        grown = resident_bytes(daemon.process.pid) - base
        assert 50_000_000 < grown < 64_000_000 + 30_000_000
