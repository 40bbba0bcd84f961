"""The lean wire against a target that is scripted byte by byte, on both loops."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from headrace.buckets import Bucket
from headrace_daemon.errors import ObjectChangedError
from headrace_daemon.source.ais.clustermap import Node
from headrace_daemon.source.ais.counts import Counts
from headrace_daemon.source.ais.faults import Fault, Kind
from headrace_daemon.source.ais.lean import connection as connections
from headrace_daemon.source.ais.lean.exchanges import Exchange, Round
from headrace_daemon.source.ais.lean.lane import DEPTH, MAX_CONNECTIONS, PIPELINED_BYTES
from headrace_daemon.source.ais.lean.wire import LeanWire
from headrace_daemon.source.ais.targets import Targets
from headrace_daemon.source.ais.transfer import Transfer
from headrace_daemon.source.reader import ReadRequest
from tests.support.loops import LOOPS, run, turns, until
from tests.support.raw_target import Link, answer, raw_target
from tests.support.reading_ais import target_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headrace_daemon.errors import SourceError
    from headrace_daemon.source.ais.lean.connection import Connection
    from tests.support.loops import Loop

BUCKET: Final = Bucket.parse("ais://b")
OBJECTS: Final = {f"{number:03}": b"object %03d" % number for number in range(200)}


@asynccontextmanager
async def open_wire(*, stall_s: float = 10.0, deadline_s: float = 60.0) -> AsyncIterator[LeanWire]:
    async with LeanWire(Counts(), Targets(), stall_s=stall_s, deadline_s=deadline_s) as wire:
        yield wire


class Asked:
    """Some objects that are asked for."""

    def __init__(self, wire: LeanWire, node: Node, sizes: dict[str, int]) -> None:
        self.wire = wire
        self.round = Round(len(sizes))
        self.targets = {name: bytearray(size) for name, size in sizes.items()}
        self.exchanges = []
        for name, target in self.targets.items():
            transfer = Transfer(BUCKET, ReadRequest(name, memoryview(target)))
            path = f"/v1/objects/b/{name}?provider=ais"
            self.exchanges.append(Exchange(transfer, path, node, self.round))
        wire.submit(self.exchanges)

    def withdraw(self) -> None:
        """Take everything back, and use the memory for something else."""
        self.wire.withdraw(self.exchanges)
        for exchange in self.exchanges:
            target_of(exchange.transfer.request).release()
        for target in self.targets.values():
            target[:] = bytes(len(target))
            target.append(0)  # BufferError while anybody has a view of it

    async def over(self) -> dict[str, Fault | SourceError]:
        """Wait for the end; return the failures by name."""
        failures = {}
        while (failure := await self.round.next_failure()) is not None:
            failures[failure[0].transfer.request.name] = failure[1]
        return failures

    async def all_arrive(self) -> None:
        assert await self.over() == {}
        for name, target in self.targets.items():
            assert target == OBJECTS[name]


def small(*names: str) -> dict[str, int]:
    return {name: len(OBJECTS[name]) for name in names}


async def serve(link: Link) -> None:
    """Answer everything as it should be."""
    while True:
        name, asked = await link.request()
        data = OBJECTS[name]
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            await link.say(rest(data, start))
        else:
            await link.say(answer(data))


def rest(data: bytes, start: int) -> bytes:
    """Return the answer to a request for the rest of an object."""
    span = f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}\r\n"
    whole = answer(data, status="206 Partial Content", length=len(data) - start, more=span)
    head, _, _ = whole.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + data[start:]


@pytest.mark.parametrize("loop", LOOPS)
def test_every_object_is_asked_for_once(loop: Loop) -> None:
    async def main() -> None:
        async with raw_target(serve) as target, open_wire() as wire:
            asked = Asked(wire, target.node, small(*OBJECTS))
            await asked.all_arrive()
            assert sorted(target.asked) == [(name, "") for name in OBJECTS]
            assert len(target.links) <= MAX_CONNECTIONS
            again = Asked(wire, target.node, small(*OBJECTS))
            num_links = len(target.links)
            await again.all_arrive()
            assert len(target.links) == num_links, "connections are kept"

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_requests_are_sent_ahead_but_not_too_many(loop: Loop) -> None:
    seen: list[int] = []

    async def script(link: Link) -> None:
        names = [await link.request()]
        for _ in range(DEPTH):  # whatever is there without an answer
            try:
                async with asyncio.timeout(0.05):
                    names.append(await link.request())
            except TimeoutError:
                break
        seen.append(len(names))
        await link.say(b"".join(answer(OBJECTS[name]) for name, _ in names))
        await serve(link)

    async def main() -> None:
        async with raw_target(script) as target, open_wire() as wire:
            await Asked(wire, target.node, small(*OBJECTS)).all_arrive()
            assert len(target.links) == MAX_CONNECTIONS
            assert max(seen) <= DEPTH
            assert max(seen) > 1

    run(main(), loop)


def test_large_objects_have_connections_of_their_own() -> None:
    size = PIPELINED_BYTES + 1

    async def script(link: Link) -> None:
        await link.request()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.request()
        await link.say(answer(bytes(size)))
        await link.gone()

    async def main() -> None:
        async with raw_target(script) as target, open_wire() as wire:
            asked = Asked(wire, target.node, {str(number): size for number in range(8)})
            assert await asked.over() == {}
            assert len(target.links) == 8

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_what_was_not_answered_is_asked_again_and_what_was_is_not(loop: Loop) -> None:
    names = list(OBJECTS)[:40]

    async def script(link: Link) -> None:
        if link.number > 10:
            await serve(link)
        for _ in range(2):  # and then close, with requests that nobody answers
            name, _ = await link.request()
            await link.say(answer(OBJECTS[name]))
        await link.finish()

    async def main() -> None:
        async with raw_target(script) as target, open_wire() as wire:
            asked = Asked(wire, target.node, small(*names))
            await asked.all_arrive()
            assert len(target.links) > 10
            # Of what was sent and not answered, the target took no notice.
            assert sorted(target.asked) == [(name, "") for name in names]

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_break_in_an_answer_is_one_fault_and_what_arrived_is_kept(
    loop: Loop, is_reset: bool
) -> None:
    async def script(link: Link) -> None:
        if link.number == 0:
            name, _ = await link.request()
            await link.say(answer(OBJECTS[name])[:-4])
            if is_reset:
                await until(lambda: asked[0].exchanges[0].transfer.done)
                link.reset()
            return
        await serve(link)

    asked: list[Asked] = []

    async def main() -> None:
        async with raw_target(script) as target, open_wire() as wire:
            asked.append(Asked(wire, target.node, small("000", "001", "002")))
            failures = await asked[0].over()
            assert list(failures) == ["000"]
            fault = failures["000"]
            assert isinstance(fault, Fault)
            assert fault.kind is Kind.NODE
            assert "broke off in the middle" in fault.words
            transfer = asked[0].exchanges[0].transfer
            assert transfer.done == len(OBJECTS["000"]) - 4
            assert [asked[0].targets[name] for name in ("001", "002")] == [
                OBJECTS["001"],
                OBJECTS["002"],
            ]
            # The next attempt asks for the rest.
            round_ = Round(1)
            wire.submit([Exchange(transfer, "/v1/objects/b/000", target.node, round_)])
            assert await round_.next_failure() is None
            assert target.asked[-1] == ("000", f"bytes={transfer.size - 4}-")
            assert asked[0].targets["000"] == OBJECTS["000"]

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("after", [0, 1, 100, -4], ids=["head", "status", "fields", "body"])
def test_a_target_that_says_nothing_more_is_noticed(loop: Loop, after: int) -> None:
    async def script(link: Link) -> None:
        name, _ = await link.request()
        await link.say(answer(OBJECTS[name])[:after])
        await link.gone()

    async def main() -> None:
        async with raw_target(script) as target, open_wire(stall_s=0.05) as wire:
            failures = await Asked(wire, target.node, small("000", "001")).over()
            assert set(failures) == {"000", "001"}, "both have waited for as long"
            assert len(target.links) == 1, "and neither is asked again by the wire itself"
            for fault in failures.values():
                assert isinstance(fault, Fault)
                assert fault.words == "did not send anything for too long"

    run(main(), loop)


def test_a_slow_drip_is_no_progress_for_ever() -> None:
    async def script(link: Link) -> None:
        name, _ = await link.request()
        for byte in answer(OBJECTS[name]):
            await link.say(bytes([byte]))
            await asyncio.sleep(0.01)

    async def main() -> None:
        async with raw_target(script) as target, open_wire(stall_s=0.1, deadline_s=0.2) as wire:
            failures = await Asked(wire, target.node, small("000")).over()
            fault = failures["000"]
            assert isinstance(fault, Fault)
            assert "took more than 0.2 s ([store] deadline_s)" in fault.words

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_target_that_is_not_there_is_a_fault_of_each_request(loop: Loop) -> None:
    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            node = Node("t", f"http://127.0.0.1:{nobody.getsockname()[1]}")
            async with open_wire() as wire:
                failures = await Asked(wire, node, small(*OBJECTS)).over()
                assert set(failures) == set(OBJECTS)
                for fault in failures.values():
                    assert isinstance(fault, Fault)
                    # Those that wait when it has failed often enough are not charged.
                    assert fault.kind in (Kind.NODE, Kind.BARRED)
                    assert "cannot be reached (Connection refused)" in fault.words
                assert [gate.where for gate in wire.targets.barred] == [str(node)]

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_idle_connections_are_closed_before_the_store_does(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.05)
    gone = asyncio.Event()

    async def script(link: Link) -> None:
        name, _ = await link.request()
        await link.say(answer(OBJECTS[name]))
        await link.gone()
        gone.set()

    async def main() -> None:
        async with raw_target(script) as target, open_wire() as wire:
            await Asked(wire, target.node, small("000")).all_arrive()
            await gone.wait()

    run(main(), loop)


def test_an_object_that_changed_is_an_error_and_costs_no_connection() -> None:
    async def main() -> None:
        async with raw_target(serve) as target, open_wire() as wire:
            failures = await Asked(wire, target.node, {"000": 3, "001": 10}).over()
            assert isinstance(failures["000"], ObjectChangedError)
            assert "has 10 bytes" in str(failures["000"])
            assert set(failures) == {"000"}
            assert len(target.links) == 1

    run(main())


# ---- taken back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("after", ["connect", "request", "status", "fields", "body", "all but one"])
def test_what_is_taken_back_is_written_no_more(loop: Loop, after: str) -> None:
    data = bytes(range(256)) * 400
    whole = answer(data)
    size = {"request": 0, "status": 5, "fields": 60, "body": 50_000, "all but one": len(whole) - 1}
    is_said = asyncio.Event()
    goes_on = asyncio.Event()

    async def script(link: Link) -> None:
        name, _ = await link.request()
        if name in OBJECTS:
            await link.say(answer(OBJECTS[name]))
            await serve(link)
        await link.say(whole[: size[after]])
        is_said.set()
        await goes_on.wait()
        await link.say(whole[size[after] :])
        await link.gone()

    async def main() -> None:
        async with raw_target(script) as target, open_wire() as wire:
            asked = Asked(wire, target.node, {"large": len(data)})
            transfer = asked.exchanges[0].transfer
            if after != "connect":
                await is_said.wait()
                due = max(0, size[after] - len(whole) + len(data))
                await until(lambda: transfer.done == due)
            asked.withdraw()
            goes_on.set()
            # Others are read all the same, and the memory stays as it was left.
            await Asked(wire, target.node, small("000", "001")).all_arrive()
            await turns(10)
            assert asked.targets["large"] == bytes(len(data) + 1)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_others_asked_on_the_same_connection_is_asked_again(loop: Loop) -> None:
    async def script(link: Link) -> None:
        if link.number == 0:
            await link.request()
            await link.gone()
            return
        await serve(link)

    async def main() -> None:
        async with raw_target(script) as target, open_wire() as wire:
            first = Asked(wire, target.node, small("000", "001"))
            await until(lambda: target.links and target.links[0].asked)
            second = Asked(wire, target.node, small("002"))
            both = Asked(wire, target.node, small("003"))
            first.withdraw()
            await second.all_arrive()
            await both.all_arrive()
            assert ("001", "") not in target.asked

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_closing_the_wire_ends_what_is_under_way(loop: Loop) -> None:
    async def script(link: Link) -> None:
        await link.request()
        await link.gone()

    async def main() -> None:
        async with raw_target(script) as target:
            async with open_wire() as wire:
                asked = Asked(wire, target.node, small(*OBJECTS))
                await until(lambda: target.links and target.links[0].asked)
            failures = await asked.over()
            assert set(failures) == set(OBJECTS)
            assert all("the store is closed" in str(fault) for fault in failures.values())
            with pytest.raises(RuntimeError, match="not running"):
                Asked(wire, target.node, small("000"))

    run(main(), loop)


def test_nothing_is_left_of_what_is_over() -> None:
    kept: list[Connection] = []

    async def main() -> None:
        async with raw_target(serve) as target, open_wire() as wire:
            asked = Asked(wire, target.node, small(*OBJECTS))
            await asked.all_arrive()
            assert not wire.is_idle
            kept.extend(exchange.connection for exchange in asked.exchanges if exchange.connection)
        assert wire.is_idle

    run(main())
    assert not kept
