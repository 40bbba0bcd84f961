"""Sessions over real sockets, with a client by hand that may do anything."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.manifest import Manifest
from headrace.plans import Sequential, Shuffled
from headrace.protocol import State
from headrace.protocol import messages as m
from headrace_daemon.errors import ObjectMissingError
from headrace_daemon.source.catalog import OpenSource
from headrace_daemon.source.progress import Progress
from headrace_daemon.transport import session as session_module
from headrace_daemon.transport.session import MAX_INDICES, MAX_REQUESTS
from tests.support.loops import run, turns, until
from tests.support.reading import GatedReader, ReadyReader, value_of
from tests.support.serving import SLOT_BYTES
from tests.support.talking import Client, Sessions, sessions, values
from tests.support.wire import frame, raw_frame

if TYPE_CHECKING:
    from tests.support.loops import Loop

GARBAGE = b"\0\0\0\4\0\0\0\0\xc1\xc1\xc1\xc1"
"""A frame whose content is no msgpack."""


@pytest.fixture(autouse=True)
def no_bug_is_logged(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Any:  # noqa: ANN401
    """Nothing that a client does may look like a bug of ours in the log."""
    caplog.set_level(logging.DEBUG, "headrace_daemon")
    yield
    if "logs_a_bug" not in request.fixturenames:
        bugs = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert bugs == []


@pytest.fixture
def logs_a_bug() -> None:
    """Mark a test in which something fails that must not."""


def missing(name: str) -> ObjectMissingError:
    return ObjectMissingError(name, f"file {name} is gone")


# ---- greeting ------------------------------------------------------------------------------------


def test_the_daemon_answers_a_greeting(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = open_ones.connect()
            await client.send(m.Hello(versions=(1, 2), agent="other/7"))
            welcome = await client.expect(m.Welcome)
            assert (welcome.version, welcome.agent) == (1, session_module.AGENT)

    run(main(), loop)


@pytest.mark.parametrize("versions", [(), (2,), (0, 2, 3)])
def test_without_a_common_version_the_client_hears_both(
    loop: Loop, versions: tuple[int, ...]
) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = open_ones.connect()
            await client.send(m.Hello(versions=versions, agent="other/7"))
            error = await client.expect(m.Error)
            assert (error.code, error.fault, error.scope) == ("version", "client", "connection")
            assert "other/7" in error.message
            assert f"{', '.join(map(str, versions)) or 'none'}, this daemon" in error.message
            assert "speaks 1" in error.message
            await client.end()

    run(main(), loop)


@pytest.mark.parametrize(
    "hello",
    [
        m.Hello(versions=tuple(range(2, 200_000))),
        m.Hello(versions=(2,), agent="x" * 1_000_000),
        m.Hello(versions=(2,), agent="\n" * 1_000_000),
    ],
    ids=["versions", "agent", "control characters"],
)
def test_a_long_greeting_gets_a_short_answer(loop: Loop, hello: m.Hello) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = open_ones.connect()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(client.send(hello))
                error = await client.expect(m.Error)
            assert error.code == "version"
            assert len(error.message) < 2000
            await client.end()

    run(main(), loop)


def test_whoever_does_not_greet_is_told_so(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = open_ones.connect()
            await client.send_bytes(frame(m.Status(request=1)))
            error = await client.expect(m.Error)
            assert (error.code, error.fault) == ("protocol", "client")
            await client.end()

    run(main(), loop)


def test_whoever_says_nothing_is_hung_up_on(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "GREETING_S", 0.01)

    async def main() -> None:
        async with sessions() as open_ones:
            await open_ones.connect().end()

    run(main(), loop)


def test_whoever_has_greeted_may_be_silent(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "GREETING_S", 0.01)

    async def main() -> None:
        async with sessions() as open_ones:
            client, silent = await open_ones.greeted(), open_ones.connect()
            await silent.end()
            await client.nothing()

    run(main(), loop)


# ---- streaming -----------------------------------------------------------------------------------


def test_opened_says_what_was_opened(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            opened = await client.open(start={"seek": {"update": 3}}, prefetch=5)
            (entry,) = open_ones.daemon.registry.feeds
            manifest = open_ones.daemon.catalog.source.manifest
            assert opened.token == entry.token
            assert opened.stream["source"] == {
                "type": "Objects",
                "uri": "/data",
                "suffix": [],
                "recursive": True,
            }
            assert opened.stream["plan"]["batch_size"] == 2
            assert (opened.manifest, opened.length) == (manifest.digest, 20)
            assert list(opened.blocks) == manifest.blocks
            assert opened.plan == open_ones.daemon.stream.plan.digest
            assert (opened.cursor["step"], opened.steps) == (3, 10)
            assert (opened.slot_bytes, opened.num_slots) == (SLOT_BYTES, 6)

    run(main(), loop)


def test_a_batch_says_what_it_is(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(sizes=[5, 70, 0], plan=Sequential(batch_size=3)) as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=2, start={"seek": {"update": 4}})
            batch = await client.batch()
            assert (batch.seq, batch.epoch, batch.step, batch.global_step) == (0, 4, 0, 4)
            assert (batch.stream, batch.role, batch.n) == ("train", "main", 3)
            assert batch.keys == ("s000", "s001", "s002")
            assert np.frombuffer(batch.ids, "<u8").tolist() == [0, 1, 2]
            assert np.frombuffer(batch.off, "<u8").tolist() == [0, 64, 192]
            assert np.frombuffer(batch.lengths, "<u8").tolist() == [5, 70, 0]
            assert batch.flags == bytes(3)
            assert (batch.cursor["epoch"], batch.cursor["step"]) == (5, 0)
            end = await client.expect(m.EpochEnd)
            assert (end.epoch, end.cursor) == (4, batch.cursor)
            assert (await client.batch()).seq == 1

    run(main(), loop)


@pytest.mark.parametrize("credit", [0, 1, 3])
def test_as_many_batches_come_as_there_is_credit_for(loop: Loop, credit: int) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=credit)
            assert await client.steps(credit) == [(0, step) for step in range(credit)]
            (entry,) = open_ones.daemon.registry.feeds
            await until(lambda: entry.feed.num_ready == 5)
            await client.nothing()
            for total in (credit + 1, credit + 1, credit + 4):  # a total again grants nothing
                granted = total - client.connection.credit.spent
                await client.send(m.Credit(total=total))
                start = client.connection.credit.spent
                assert await client.steps(granted) == [
                    (0, step) for step in range(start, start + granted)
                ]
                await client.nothing()

    run(main(), loop)


def test_a_rank_gets_its_share(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(plan=Shuffled(batch_size=2, seed=3)) as open_ones:
            seen: list[int] = []
            for rank in range(2):
                client = await open_ones.greeted()
                await client.open(credit=100, rank=rank, world_size=2, epochs=1)
                for _ in range(5):
                    seen += np.frombuffer((await client.batch()).ids, "<u8").tolist()
                await client.expect(m.EpochEnd)
                assert (await client.expect(m.End)).reason == "finished"
                client.hang_up()
            assert sorted(seen) == list(range(20))

    run(main(), loop)


def test_a_finished_feed_is_ended_and_the_connection_can_open_another(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            for _ in range(3):
                await client.open(credit=100, epochs=1)
                assert len(await client.steps(10)) == 10
                await client.expect(m.EpochEnd)
                assert (await client.expect(m.End)).reason == "finished"
                open_ones.daemon.assert_whole()

    run(main(), loop)


def test_a_batch_larger_than_any_socket_buffer_arrives_whole(loop: Loop) -> None:
    async def main() -> None:
        sizes = [12_000_000, 1, 8_000_000]
        async with sessions(
            sizes=sizes, plan=Sequential(batch_size=3), budget_bytes=50_000_000
        ) as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=1)
            assert (await client.batch()).n == 3

    run(main(), loop)


def test_a_batch_of_more_samples_than_the_kernel_takes_buffers_arrives_whole(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(
            sizes=[1] * 3000, plan=Sequential(batch_size=3000), budget_bytes=10**6
        ) as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=1)
            assert (await client.batch()).n == 3000

    run(main(), loop)


# ---- what goes wrong with a feed -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "fault"),
    [
        ({"stream": "trian"}, "plan", "client"),
        ({"rank": 2, "world_size": 2}, "topology", "client"),
        ({"start": {"seek": {}}}, "cursor", "client"),
        ({"prefetch": 0}, "plan", "client"),
        ({"stream": {"source": {"uri": "/x"}, "plan": {}}}, "plan", "client"),
        (
            {"stream": {"source": {"uri": "/x"}, "plan": {"type": "Sequential", "batch_size": 1}}},
            "trust",
            "client",
        ),
    ],
)
def test_a_feed_that_is_refused_leaves_the_connection_ready(
    loop: Loop, fields: dict[str, Any], code: str, fault: str
) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.send(m.Open(**fields))
            error = await client.expect(m.Error)
            assert (error.code, error.fault, error.scope) == (code, fault, "feed")
            assert not error.retryable
            await client.open(credit=1)
            assert await client.steps(1) == [(0, 0)]

    run(main(), loop)


def test_a_full_budget_is_told_with_its_numbers_and_may_be_tried_again(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(budget_bytes=3 * SLOT_BYTES) as open_ones:
            first, second = await open_ones.greeted(), await open_ones.greeted()
            await first.open()
            await second.send(m.Open())
            error = await second.expect(m.Error)
            assert (error.code, error.retryable) == ("budget", True)
            assert "the budget is 384 bytes" in error.message
            await first.send(m.Close())
            await first.expect(m.End)
            await second.open()

    run(main(), loop)


def test_an_error_quotes_no_megabytes(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(client.send(m.Open(stream="\x01" * 1_000_000)))
                error = await client.expect(m.Error)
            assert error.code == "plan"
            assert len(error.message) < 10_000
            await client.open()

    run(main(), loop)


def test_an_object_that_is_gone_ends_the_feed_after_the_batches_before_it(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(reader=GatedReader()) as open_ones:
            reads = open_ones.daemon.gated.reads
            client = await open_ones.greeted()
            await client.open(credit=100)
            await until(lambda: len(reads) == 5)
            reads[2].fail(missing("s004"))
            for number in (4, 1, 0, 3):
                reads[number].finish()
            assert await client.steps(2) == [(0, 0), (0, 1)]
            error = await client.expect(m.Error)
            assert (error.code, error.fault, error.scope) == ("source", "data", "feed")
            assert error.message == "file s004 is gone"
            assert not error.retryable
            open_ones.daemon.assert_whole()

    run(main(), loop)


def test_a_bug_in_a_reader_ends_the_feed_and_not_the_connection(
    loop: Loop, logs_a_bug: None
) -> None:
    async def main() -> None:
        async with sessions(reader=GatedReader()) as open_ones:
            reads = open_ones.daemon.gated.reads
            client = await open_ones.greeted()
            await client.open(credit=100)
            await until(lambda: len(reads) == 5)
            reads[0].finish()
            assert await client.steps(1) == [(0, 0)]
            reads[1].fail(RuntimeError("a bug"))
            error = await client.expect(m.Error)
            assert (error.code, error.fault, error.scope) == ("internal", "daemon", "feed")
            await client.nothing()

    run(main(), loop)


@pytest.mark.parametrize("what", ["open", "lookup", "read"])
def test_what_nobody_foresaw_is_answered_and_logged(
    loop: Loop, logs_a_bug: None, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    asks: dict[str, m.ClientMessage] = {
        "open": m.Open(),
        "lookup": m.Lookup(request=3),
        "read": m.Read(request=3),
    }
    ask = asks[what]

    async def main() -> None:
        async with sessions() as open_ones:
            open_ones.daemon.catalog.failure = OSError(errno.ENOSPC, "No space left on device")
            client = await open_ones.greeted()
            await client.send(ask)
            error = await client.expect(m.Error)
            assert (error.code, error.fault) == ("internal", "daemon")
            assert error.scope == ("feed" if what == "open" else "request")
            assert error.request == (0 if what == "open" else 3)
            assert "No space left on device" in error.message
            open_ones.daemon.catalog.failure = None
            await client.open()

    run(main(), loop)
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


# ---- closing -------------------------------------------------------------------------------------


def test_a_feed_is_closed_in_mid_stream_and_its_memory_is_back(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            for _ in range(3):
                await client.open(credit=4)
                assert await client.steps(4) == [(0, step) for step in range(4)]
                await client.send(m.Close())
                assert (await client.expect(m.End)).reason == "closed"
                open_ones.daemon.assert_whole()
                assert client.state is State.READY

    run(main(), loop)


def test_batches_that_cross_a_close_are_no_fault_of_anybody(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=10)
            await client.send(m.Close())
            while isinstance(event := await client.next(), tuple):
                pass
            assert isinstance(event, m.End)
            await client.send(m.Credit(total=11), m.Release(seqs=()), m.Close())  # crossed it
            await client.nothing()

    run(main(), loop)


def test_a_feed_is_closed_while_it_is_being_opened(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            catalog = open_ones.daemon.catalog
            catalog.gate = asyncio.get_running_loop().create_future()
            client = await open_ones.greeted()
            await client.send(m.Open())
            await until(lambda: catalog.num_waiting)
            await client.send(m.Close())
            assert (await client.expect(m.End)).reason == "closed"
            assert not catalog.num_waiting
            open_ones.daemon.assert_whole()
            catalog.gate = None
            await client.open(credit=1)
            assert await client.steps(1) == [(0, 0)]

    run(main(), loop)


def test_a_feed_is_closed_in_the_message_after_its_opening(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.send(m.Open(credit=4), m.Close())
            while isinstance(event := await client.next(), m.Opened | tuple):
                pass
            assert isinstance(event, m.End)
            open_ones.daemon.assert_whole()

    run(main(), loop)


def test_whoever_closes_and_leaves_gets_its_memory_taken_back_all_the_same(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(reader=GatedReader(lingers=True)) as open_ones:
            daemon = open_ones.daemon
            client = await open_ones.greeted()
            await client.open()
            await until(lambda: len(daemon.gated.reads) == 5)
            await client.send(m.Close())
            await until(lambda: daemon.gated.reads[0].is_cancelled)
            client.hang_up()
            await until(open_ones.running[0].done)
            daemon.gated.finish_all()
            await daemon.whole()

    run(main(), loop)


# ---- requests ------------------------------------------------------------------------------------


def test_status_is_answered_in_every_state(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            open_ones.report = {"feeds": [1, 2], "deep": {"x": None}}
            client = await open_ones.greeted()
            await client.send(m.Status(request=7))
            report = await client.expect(m.Report)
            assert (report.request, report.report) == (7, open_ones.report)
            catalog = open_ones.daemon.catalog
            catalog.gate = asyncio.get_running_loop().create_future()
            await client.send(m.Open())
            await until(lambda: catalog.num_waiting)
            await client.nothing()
            catalog.gate.set_result(None)
            await client.expect(m.Opened)
            await client.nothing()

    run(main(), loop)


def test_requests_are_answered_in_their_order_between_batches(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=3)
            await client.send(
                m.Read(request=1, indices=(3, 1)),
                m.Status(request=2),
                m.Credit(total=6),
                m.Lookup(request=3, indices=(19,)),
                m.Read(request=4),
            )
            steps: list[int] = []
            answers: list[int] = []
            while len(steps) < 6 or len(answers) < 4:
                event = await client.next()
                match event:
                    case (m.Batch() as header, _):
                        steps.append(header.step)
                    case (m.Samples() as header, _):
                        answers.append(header.request)
                    case m.Report(request=number) | m.Entries(request=number):
                        answers.append(number)
                    case _:
                        raise AssertionError(event)
            assert steps == [0, 1, 2, 3, 4, 5]
            assert answers == [1, 2, 3, 4]

    run(main(), loop)


def test_a_read_returns_the_samples_that_it_names_in_that_order(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(sizes=[9, 0, 80, 1]) as open_ones:
            client = await open_ones.greeted()
            for indices in ((2, 0, 1, 2), (), (3,)):
                await client.send(m.Read(request=5, indices=indices))
                event = await client.samples()
                assert isinstance(event.header, m.Samples)
                assert event.header.request == 5
                names = tuple(f"s{index:03}" for index in indices)
                assert event.header.keys == names
                sizes = [(9, 0, 80, 1)[index] for index in indices]
                expected = [value_of(*pair) for pair in zip(names, sizes, strict=True)]
                assert values(event) == expected
            await open_ones.daemon.whole()

    run(main(), loop)


def test_a_lookup_tells_about_a_stream_without_opening_it(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            place = {"seek": {"update": 3}}
            await client.send(m.Lookup(request=6, start=place, indices=(19, 0), world_size=2))
            entries = await client.expect(m.Entries)
            manifest = open_ones.daemon.catalog.source.manifest
            assert (entries.request, entries.length, entries.total_bytes) == (6, 20, 800)
            assert (entries.manifest, list(entries.blocks)) == (manifest.digest, manifest.blocks)
            assert (entries.steps, entries.remaining, entries.cursor["step"]) == (5, 2, 3)
            assert (entries.names, entries.sizes) == (("s019", "s000"), (40, 40))
            assert entries.plan == open_ones.daemon.stream.plan.digest
            open_ones.daemon.assert_whole()

    run(main(), loop)


@pytest.mark.parametrize("kind", [m.Lookup, m.Read])
@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"indices": (0, 20)}, "plan", "sample 20 is outside the manifest, 0..19"),
        ({"indices": (-1,)}, "plan", "sample -1 is outside"),
        ({"indices": (0,) * (MAX_INDICES + 1)}, "plan", "ask for at most 4096"),
        ({"stream": "trian"}, "plan", "'trian' is not configured"),
        ({"stream": {}}, "plan", "the stream cannot be read"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_its_number(
    loop: Loop,
    kind: type[m.Lookup] | type[m.Read],
    fields: dict[str, Any],
    code: str,
    reason: str,
) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.send(kind(request=77, **fields))
            error = await client.expect(m.Error)
            assert (error.scope, error.request, error.code) == ("request", 77, code)
            assert reason in error.message
            await client.nothing()

    run(main(), loop)


def test_a_lookup_whose_answer_is_too_long_is_refused(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            entries = [(f"{number:03}".encode() + b"x" * 1000, 1) for number in range(20)]
            source = OpenSource(Manifest.build(entries), ReadyReader())
            open_ones.daemon.catalog.source = source
            client = await open_ones.greeted()
            await client.send(m.Lookup(request=3, indices=(0,) * 4000))
            error = await client.expect(m.Error)
            assert (error.scope, error.request, error.code) == ("request", 3, "plan")
            assert "ask for fewer samples at a time" in error.message

    run(main(), loop)


def test_a_read_that_the_budget_cannot_hold_is_refused(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(budget_bytes=1000) as open_ones:
            client = await open_ones.greeted()
            await client.open()
            await client.send(m.Read(request=3, indices=tuple(range(20))))
            error = await client.expect(m.Error)
            assert (error.scope, error.request, error.code) == ("request", 3, "budget")
            assert "reading 20 samples at once needs 1256 bytes" in error.message
            await client.send(m.Read(request=4, indices=(1,)))
            assert values(await client.samples()) == [value_of("s001", 40)]

    run(main(), loop)


def test_a_read_that_no_frame_can_carry_is_refused(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(sizes=[2**31] * 2, budget_bytes=2**40) as open_ones:
            client = await open_ones.greeted()
            await client.send(m.Read(request=3, indices=(0, 1)))
            error = await client.expect(m.Error)
            assert (error.scope, error.request, error.code) == ("request", 3, "plan")
            assert "above the limit" in error.message
            await open_ones.daemon.whole()

    run(main(), loop)


def test_a_read_of_what_is_gone_is_refused_and_the_connection_goes_on(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(reader=GatedReader()) as open_ones:
            reader = open_ones.daemon.gated
            client = await open_ones.greeted()
            await client.send(m.Read(request=3, indices=(5,)), m.Read(request=4, indices=(6,)))
            await until(lambda: reader.reads)
            reader.reads[0].fail(missing("s005"))
            error = await client.expect(m.Error)
            assert (error.scope, error.request, error.fault) == ("request", 3, "data")
            await until(lambda: len(reader.reads) == 2)
            reader.reads[1].finish()
            assert (await client.samples()).header.keys == ("s006",)
            await open_ones.daemon.whole()

    run(main(), loop)


def test_whoever_hangs_up_in_the_middle_of_a_read_leaves_nothing(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(reader=GatedReader(lingers=True)) as open_ones:
            reader = open_ones.daemon.gated
            client = await open_ones.greeted()
            await client.send(m.Read(indices=(0, 1)))
            await until(lambda: reader.reads)
            client.hang_up()
            await until(lambda: reader.reads[0].is_cancelled)
            assert not open_ones.running[0].done()
            reader.finish_all()
            await until(open_ones.running[0].done)
            await open_ones.daemon.whole()

    run(main(), loop)


def test_whoever_hangs_up_while_a_read_fails_does_not_keep_the_session(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(
            sizes=[40] * 64, budget_bytes=10_000, reader=GatedReader(lingers=True)
        ) as open_ones:
            reader = open_ones.daemon.gated
            client = await open_ones.greeted()
            await client.send(m.Read(indices=tuple(range(64))))
            await until(lambda: len(reader.reads) == 2)
            reader.reads[0].fail(missing("s000"))
            await turns(5)
            client.hang_up()
            await turns(5)
            reader.reads[1].finish()
            await until(open_ones.running[0].done)

    run(main(), loop)


# ---- signs of life -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["opening", "streaming", "lookup", "read"])
def test_whoever_waits_hears_a_heartbeat(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(session_module, "HEARTBEAT_S", 0.005)

    async def main() -> None:
        async with sessions(reader=GatedReader()) as open_ones:
            daemon = open_ones.daemon
            gate = asyncio.get_running_loop().create_future()
            if what in ("opening", "lookup"):
                daemon.catalog.gate = gate
            client = await open_ones.greeted()
            match what:
                case "opening":
                    await client.send(m.Open())
                case "streaming":
                    await client.open(credit=1)
                case "lookup":
                    await client.send(m.Lookup())
                case "read":
                    await client.send(m.Read(indices=(0,)))
            for _ in range(3):
                assert (await client.notice()).kind == "waiting"

    run(main(), loop)


def test_a_long_listing_is_told_as_it_goes_on(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            catalog = open_ones.daemon.catalog
            catalog.gate = asyncio.get_running_loop().create_future()
            client = await open_ones.greeted()
            await client.send(m.Open())
            await until(lambda: catalog.num_waiting)
            assert catalog.tell is not None
            far = Progress("listing", 10_000)
            await asyncio.get_running_loop().run_in_executor(None, catalog.tell, far)
            notice = await client.notice()
            assert (notice.kind, notice.done) == ("listing", 10_000)
            catalog.gate.set_result(None)
            await client.expect(m.Opened)

    run(main(), loop)


# ---- clients that misbehave ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        GARBAGE,
        b"\xff" * 8,
        b"GET / HTTP/1.1\r\n\r\n",
        raw_frame(b"\x80", b"payload"),
        frame({"type": "unheard"}),
        frame({"type": "welcome", "version": 1}),
        frame({"type": "credit", "total": "many"}),
        frame({"type": "hello", "versions": [1]}),
    ],
)
def test_garbage_is_answered_with_a_reason_and_a_hang_up(loop: Loop, garbage: bytes) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client, other = await open_ones.greeted(), await open_ones.greeted()
            await client.send_bytes(garbage)
            error = await client.expect(m.Error)
            assert (error.code, error.fault, error.scope) == ("protocol", "client", "connection")
            await client.end()
            await other.nothing()

    run(main(), loop)


@pytest.mark.parametrize(
    "before",
    [
        [m.Open(rank=9)],
        [m.Open()],
        [m.Open(), m.Close()],
        [m.Status()],
        [m.Status()] * (3 * MAX_REQUESTS),
        [m.Lookup(), m.Read(indices=(1,)), m.Lookup(indices=(99,))],
    ],
    ids=lambda messages: f"{messages[0].__struct_config__.tag} x {len(messages)}",
)
def test_garbage_right_behind_a_message_is_no_bug_of_ours(
    loop: Loop, before: list[m.ClientMessage]
) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            for message in before:
                client.connection.send(message)
            whole = b"".join([*client.connection.data_to_send(), GARBAGE])
            await client.send_bytes(whole)
            seen = []
            while (event := await client.next()) is not None:
                seen.append(event)
            assert isinstance(seen[-1], m.Error)
            assert seen[-1].code == "protocol"
            await until(open_ones.running[0].done)

    run(main(), loop)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("part", [1, 4, 7, 9, -1])
def test_half_a_frame_and_a_hang_up_end_the_session(loop: Loop, streaming: bool, part: int) -> None:
    async def main() -> None:
        async with sessions(grace_s=0.0) as open_ones:
            client = await open_ones.greeted()
            if streaming:
                await client.open(credit=1)
            await client.send_bytes(frame(m.Status(request=1))[:part])
            client.hang_up()
            await until(open_ones.running[0].done)
            await open_ones.daemon.whole()

    run(main(), loop)


def test_a_conversation_may_come_byte_by_byte(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = open_ones.connect()
            for message in (m.Hello(versions=(1,)), m.Open(credit=2), m.Close()):
                if isinstance(message, m.Open):
                    await client.expect(m.Welcome)
                client.connection.send(message)
                for byte in b"".join(client.connection.data_to_send()):
                    await client.send_bytes(bytes((byte,)))
                if isinstance(message, m.Open):
                    await client.expect(m.Opened)
                    assert await client.steps(2) == [(0, 0), (0, 1)]
            await client.expect(m.End)

    run(main(), loop)


def test_a_client_may_read_byte_by_byte(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.send(m.Open(credit=2, epochs=1))
            seen: list[Any] = []
            while len(seen) < 3:
                seen.append(await client.receive(at_most=1))
            assert isinstance(seen[0], m.Opened)

    run(main(), loop)


def test_whoever_never_reads_gets_no_more_than_its_share(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(
            sizes=[1_000_000] * 20, plan=Sequential(batch_size=1), budget_bytes=10_000_000
        ) as open_ones:
            budget = open_ones.daemon.budget
            deaf = await open_ones.greeted()
            await deaf.open(credit=1000, prefetch=4)
            (entry,) = open_ones.daemon.registry.feeds
            # It is full when one slot is being written and the others are ready.
            await until(lambda: entry.feed.num_ready == 4 and entry.feed.pool.num_slots == 5)
            assert budget.held_bytes < 6_000_000
            # The others are served.
            client = await open_ones.greeted()
            await client.open(credit=3)
            assert await client.steps(3) == [(0, 0), (0, 1), (0, 2)]

    run(main(), loop)


@pytest.mark.parametrize("ask", [m.Status(), m.Lookup(indices=(0,) * 4096)])
def test_whoever_asks_and_never_reads_is_not_listened_to_for_long(
    loop: Loop, ask: m.Status | m.Lookup
) -> None:
    """Its requests stay in its socket, and their answers are not made."""

    async def main() -> None:
        async with sessions() as open_ones:
            open_ones.report = {"long": "x" * 500_000}
            deaf = await open_ones.greeted()
            deaf.connection.send(ask)
            request = b"".join(deaf.connection.data_to_send())
            await flood(deaf, request, open_ones)
            assert waiting_bytes(open_ones) < 2_000_000
            client = await open_ones.greeted()
            await client.open(credit=1)
            assert await client.steps(1) == [(0, 0)]
            client.hang_up()
            deaf.hang_up()

    async def flood(deaf: Client, request: bytes, open_ones: Sessions) -> None:
        """Send requests until the daemon has taken none for long."""
        idle = 0
        while idle < 200:
            try:
                deaf.sock.send(request)
            except BlockingIOError:
                idle += 1
            else:
                idle = 0
            await turns()

    run(main(), loop)


def waiting_bytes(open_ones: Sessions) -> int:
    """Return the bytes that sessions have made and not sent yet."""
    return sum(
        len(buffer) for session in open_ones.sessions for buffer in session._connection._outgoing
    )


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_whoever_hangs_up_is_waited_for_with_all_of_its_memory(loop: Loop, batches: int) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            opened = await client.open(credit=batches)
            last = None
            for _ in range(batches):
                last = await client.batch()
            client.hang_up()
            await until(open_ones.running[0].done)
            (entry,) = open_ones.daemon.registry.feeds
            assert entry.grace is not None
            again = await open_ones.greeted()
            start = opened.cursor if last is None else last.cursor
            reopened = await again.open(credit=2, start=start, token=opened.token)
            assert reopened.token == opened.token
            assert await again.steps(2) == [(0, batches), (0, batches + 1)]
            assert len(open_ones.daemon.registry.feeds) == 1

    run(main(), loop)


def test_whoever_hangs_up_in_the_middle_of_a_batch_leaves_a_whole_pool(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(
            sizes=[20_000_000] * 2, plan=Sequential(batch_size=1), budget_bytes=10**9
        ) as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=2)
            buffer = bytearray(100_000)
            await asyncio.get_running_loop().sock_recv_into(client.sock, buffer)
            client.hang_up()
            await until(open_ones.running[0].done)
            (entry,) = open_ones.daemon.registry.feeds
            await open_ones.daemon.registry.close(entry)
            open_ones.daemon.assert_whole()

    run(main(), loop)


def test_whoever_comes_back_too_early_may_try_again(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client, early = await open_ones.greeted(), await open_ones.greeted()
            opened = await client.open()
            await early.send(m.Open(token=opened.token))
            error = await early.expect(m.Error)
            assert (error.code, error.retryable, error.scope) == ("busy", True, "feed")
            client.hang_up()
            await until(open_ones.running[0].done)
            await early.open(token=opened.token)

    run(main(), loop)


@given(script=st.lists(st.sampled_from(["open", "credit", "close", "read", "turn"]), max_size=8))
def test_a_client_may_vanish_at_any_point(script: list[str]) -> None:
    async def main() -> None:
        async with sessions(grace_s=0.0) as open_ones:
            client = await open_ones.greeted()
            for number, action in enumerate(script):
                state = client.state
                match action:
                    case "open" if state is State.READY:
                        await client.send(m.Open(credit=1))
                    case "credit" if state is State.STREAMING:
                        await client.send(m.Credit(total=2 + number))
                    case "close" if state in (State.OPENING, State.STREAMING):
                        await client.send(m.Close())
                    case "read" if state is not State.CLOSING:
                        await client.send(m.Read(indices=(1, 2)))
                    case _:
                        await turns(number)
            client.hang_up()
            await until(open_ones.running[0].done)
            daemon = open_ones.daemon
            await daemon.whole()

    run(main())


# ---- the end of the daemon -----------------------------------------------------------------------


def drain(open_ones: Sessions) -> None:
    for session in open_ones.sessions:
        session.drain()


async def expect_send_off(client: Client) -> None:
    error = await client.expect(m.Error)
    assert (error.code, error.scope, error.retryable) == ("draining", "connection", True)
    await client.end()


@pytest.mark.parametrize("greeted", [False, True])
def test_an_idle_client_is_sent_off_at_once(loop: Loop, greeted: bool) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = open_ones.connect()
            if greeted:
                await client.greet()
            drain(open_ones)
            await expect_send_off(client)

    run(main(), loop)


def test_what_is_begun_and_allowed_is_delivered_before_the_send_off(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(reader=GatedReader()) as open_ones:
            reads = open_ones.daemon.gated.reads
            client = await open_ones.greeted()
            await client.open(credit=100, prefetch=3)
            await until(lambda: len(reads) == 4)
            reads[0].finish()
            assert await client.steps(1) == [(0, 0)]
            await until(lambda: len(reads) == 5)
            drain(open_ones)
            for read in reads[1:]:
                read.finish()
            assert await client.steps(4) == [(0, 1), (0, 2), (0, 3), (0, 4)]
            await expect_send_off(client)
            await until(open_ones.running[0].done)
            assert len(reads) == 5
            await open_ones.daemon.whole()

    run(main(), loop)


def test_batches_without_credit_do_not_delay_the_send_off(loop: Loop) -> None:
    async def main() -> None:
        async with sessions() as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=1)
            assert await client.steps(1) == [(0, 0)]
            drain(open_ones)
            await expect_send_off(client)

    run(main(), loop)


def test_a_feed_that_opens_while_the_daemon_drains_reads_nothing(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(reader=GatedReader()) as open_ones:
            catalog = open_ones.daemon.catalog
            catalog.gate = asyncio.get_running_loop().create_future()
            client = await open_ones.greeted()
            await client.send(m.Open(credit=3))
            await until(lambda: catalog.num_waiting)
            drain(open_ones)
            await turns(5)
            catalog.gate.set_result(None)
            await client.expect(m.Opened)
            await expect_send_off(client)
            assert open_ones.daemon.gated.reads == []

    run(main(), loop)


def test_a_cancelled_session_closes_its_connection(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(grace_s=0.0) as open_ones:
            client = await open_ones.greeted()
            await client.open(credit=1)
            await client.steps(1)
            open_ones.running[0].cancel()
            await client.end()
            assert open_ones.running[0].cancelled()
            await open_ones.daemon.whole()

    run(main(), loop)


def test_many_clients_leave_no_descriptor(loop: Loop) -> None:
    async def main() -> None:
        async with sessions(grace_s=0.0) as open_ones:
            first = lowest_free_descriptor()
            for _ in range(20):
                client = await open_ones.greeted()
                await client.open(credit=1)
                await client.steps(1)
                client.hang_up()
                await until(open_ones.running[-1].done)
                await until(lambda: not open_ones.daemon.registry.feeds)
            assert lowest_free_descriptor() == first

    run(main(), loop)


def lowest_free_descriptor() -> int:
    with socket.socket() as probe:
        return probe.fileno()
