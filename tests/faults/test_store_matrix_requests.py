"""What a store is asked for, by its own record: each byte once, and nothing that nobody wants."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import pytest

from headrace import DaemonDataset
from headrace.testing import Ledger, ledger_of
from headrace_daemon.source.ais.reader import AisReader
from tests.support.app import AppThread
from tests.support.standin import StandIn
from tests.support.storms import BUCKET, LARGE, NUM_PIECES, OBJECTS, SMALL, Path, shrink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace_daemon.source.reader import Request as ReadRequest
    from tests.support.standin import Request

MAX_IN_FLIGHT: Final = 16
READERS: Final = ("lean", "aiohttp")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


@pytest.fixture(scope="module")
def ais(small: None) -> Iterator[StandIn]:
    with StandIn() as ais:
        ais.create_bucket(BUCKET)
        ais.put_many(BUCKET, OBJECTS)
        yield ais


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def daemon(ais: StandIn, path: Path) -> AppThread:
    return AppThread(max_in_flight=MAX_IN_FLIGHT).configure(
        store=path.settings(ais, is_silent=False)
    )


def open_listed(ais: StandIn, app: AppThread, path: Path) -> DaemonDataset:
    """Return a dataset whose objects have been listed; requests count from now on."""
    dataset = DaemonDataset(app.socket, path.stream, prefetch_batches=64)
    assert len(dataset)
    ais.forget_requests()
    return dataset


def of_objects(ais: StandIn) -> list[Request]:
    """Return the requests for objects; fail if there are others."""
    ports = {target.port for target in ais.targets}
    asked = [request for request in ais.requests if request.method == "GET"]
    others = [request for request in ais.requests if request.method != "GET"]
    # The first groups of a new reader ask what kind of bucket it is, each for itself.
    assert {(one.method, one.path) for one in others} <= {("HEAD", f"/v1/buckets/{BUCKET}")}
    assert len(others) <= MAX_IN_FLIGHT
    for request in asked:
        assert request.port in ports, request
        assert request.path.startswith(f"/v1/objects/{BUCKET}/"), request
    return asked


def name_of(request: Request) -> str:
    return request.path.removeprefix(f"/v1/objects/{BUCKET}/")


def test_a_small_object_is_one_request_and_its_own_bytes(ais: StandIn, reader: str) -> None:
    path = Path(reader=reader, prefix="d")  # type: ignore[arg-type]
    with daemon(ais, path) as app:
        dataset = open_listed(ais, app, path)
        assert sum(len(batch) for batch in dataset) == len(SMALL)
        dataset.close()
        asked = of_objects(ais)
    assert Counter(map(name_of, asked)) == Counter(list(SMALL))
    assert {(request.range, request.status) for request in asked} == {("", 200)}
    assert sum(request.sent_bytes for request in asked) == sum(map(len, SMALL.values()))
    for request in asked:
        assert request.port == ais.owner(BUCKET, name_of(request)).port


def test_the_ranges_of_a_large_object_tile_it(ais: StandIn, reader: str) -> None:
    path = Path(reader=reader, prefix="l")  # type: ignore[arg-type]
    with daemon(ais, path) as app:
        dataset = open_listed(ais, app, path)
        assert sum(len(batch) for batch in dataset) == len(LARGE)
        dataset.close()
        asked = of_objects(ais)
    assert len(asked) == NUM_PIECES * len(LARGE)
    for name, data in LARGE.items():
        spans = sorted(
            tuple(map(int, re.findall(r"\d+", request.range)))
            for request in asked
            if name_of(request) == name
        )
        assert (spans[0][0], spans[-1][1]) == (0, len(data) - 1)
        assert all(last + 1 == first for (_, last), (first, _) in pairwise(spans))
    assert sum(request.sent_bytes for request in asked) == sum(map(len, LARGE.values()))


@pytest.mark.parametrize("prefix", ["d", "l"])
def test_what_two_ranks_read_at_the_same_time_is_asked_for_once(
    ais: StandIn, monkeypatch: pytest.MonkeyPatch, reader: str, prefix: str
) -> None:
    """As ranks that replicate do, and those of two runs on the same data."""
    path = Path(reader=reader, prefix=prefix)  # type: ignore[arg-type]
    gate = asyncio.Event()
    read = AisReader.read

    async def read_later(self: AisReader, requests: Sequence[ReadRequest]) -> None:
        await gate.wait()
        await read(self, requests)

    monkeypatch.setattr(AisReader, "read", read_later)
    with daemon(ais, path) as app:
        datasets = [open_listed(ais, app, path) for _ in range(2)]
        ledgers: list[Ledger] = []
        threads = [
            threading.Thread(target=lambda one=one: ledgers.append(ledger_of(one)))
            for one in datasets
        ]
        for thread in threads:
            thread.start()

        def have_all_asked() -> bool:
            feeds = app.app.report()["feeds"]
            return [feed["filling"] for feed in feeds] == [len(datasets[0])] * 2

        app.wait_until(have_all_asked)
        app.call(gate.set)
        for thread in threads:
            thread.join(20)
        for dataset in datasets:
            dataset.close()
        asked = of_objects(ais)
        assert app.call(app.app.report)["reads"]["shared"] == len(path.objects)
    assert len(ledgers) == 2
    assert ledgers[0].difference(ledgers[1]) is None
    assert Counter((name_of(request), request.range) for request in asked).most_common(1)[0][1] == 1
    assert sum(request.sent_bytes for request in asked) == sum(map(len, path.objects.values()))


def test_after_a_resume_nothing_is_asked_for_that_comes_before_the_cursor(
    ais: StandIn, reader: str
) -> None:
    path = Path(reader=reader, prefix="d")  # type: ignore[arg-type]
    with daemon(ais, path) as app:
        dataset = open_listed(ais, app, path)
        steps: list[list[str]] = []
        states = []
        for batch in dataset:
            steps.append(list(batch.sample_keys))
            states.append(json.dumps(dataset.state_dict()))
        dataset.close()
    half = len(steps) // 2
    with daemon(ais, path) as app:
        dataset = open_listed(ais, app, path)
        dataset.load_state_dict(json.loads(states[half - 1]))
        assert [list(batch.sample_keys) for batch in dataset] == steps[half:]
        dataset.close()
        asked = Counter(map(name_of, of_objects(ais)))
    assert asked == Counter(name for step in steps[half:] for name in step)
