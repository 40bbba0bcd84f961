"""Streams: by name or by value, within what the configuration allows, at any position."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace.errors import CursorError, ManifestMismatchError, PlanError, TopologyError
from headrace.plans import Sequential
from headrace.sources import Objects, Stream
from headrace.topology import Topology
from headrace_daemon.errors import SourceMissingError, TrustError
from headrace_daemon.feed.bound import BoundPlans
from headrace_daemon.feed.orders import OrderMaker
from headrace_daemon.feed.streams import BoundStream, Streams, is_allowed
from headrace_daemon.settings import Settings, TrustSettings
from headrace_daemon.source.store import ManifestStore
from tests.support.loops import run
from tests.support.sources import folders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALONE = Topology()


class Desk:
    """Streams over real folders, with a settable trust."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.root = root
        self.data = self.folder("data", 10)
        self.executor = executor
        self.settings = Settings()

    def folder(self, name: str, files: int) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        for number in range(files):
            (folder / f"{number:03}.bin").write_bytes(bytes(number))
        return folder

    def streams(self) -> Streams:
        catalog = folders(ManifestStore(self.root / "state"), self.executor)
        return Streams(self.settings, catalog, BoundPlans(OrderMaker()), self.executor)

    def trust(self, *prefixes: str) -> None:
        trust = TrustSettings(allow_sources=prefixes)
        self.settings = msgspec.structs.replace(self.settings, trust=trust)

    def configure(self, default: str = "", **streams: Stream) -> None:
        self.settings = Settings(streams=streams, default_stream=default)

    def bind(
        self,
        wanted: str | dict[str, Any],
        start: dict[str, Any] | None = None,
        topology: Topology = ALONE,
    ) -> BoundStream:
        async def main() -> BoundStream:
            return await self.streams().bind(wanted, topology, start)

        return run(main())


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with ThreadPoolExecutor(2) as executor:
        yield Desk(tmp_path, executor)


def stream_of(folder: Path | str, **plan: Any) -> Stream:  # noqa: ANN401 - fields of a plan
    return Stream(Objects(os.fspath(folder)), Sequential(**{"batch_size": 3, **plan}))


def plain(stream: Stream) -> dict[str, Any]:
    as_map: dict[str, Any] = msgspec.to_builtins(stream)
    return as_map


# ---- which stream --------------------------------------------------------------------------------


def test_a_stream_is_found_by_name_and_an_empty_name_is_the_default(desk: Desk) -> None:
    train, valid = stream_of(desk.data), stream_of(desk.data, batch_size=5)
    desk.configure("valid", train=train, valid=valid)
    assert desk.bind("train")[:2] == ("train", train)
    assert desk.bind("")[:2] == ("valid", valid)


def test_an_unknown_name_is_answered_with_those_that_exist(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data), eval=stream_of(desk.data))
    with pytest.raises(
        PlanError, match="stream 'trian' is not configured; configured streams: eval, train"
    ):
        desk.bind("trian")


def test_no_name_without_a_default_is_answered_with_those_that_exist(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data))
    with pytest.raises(PlanError, match="no default_stream; configured streams: train"):
        desk.bind("")
    desk.configure()
    with pytest.raises(PlanError, match="configured streams: none"):
        desk.bind("")


def test_a_configured_stream_needs_no_trust(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data))
    assert len(desk.bind("train").source.manifest) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"source": {"uri": "/data"}},
        {"source": {"uri": "/data"}, "plan": {"type": "Sequential"}},
        {"source": {"uri": "/data"}, "plan": {"type": "Unheard", "batch_size": 1}},
        {"source": {"uri": "ftp://x"}, "plan": {"type": "Sequential", "batch_size": 1}},
        {"source": {"uri": "/a\0b"}, "plan": {"type": "Sequential", "batch_size": 1}},
        {"source": {"uri": 3}, "plan": {"type": "Sequential", "batch_size": 1}},
        {"source": {"uri": "/data"}, "plan": {"type": "Sequential", "batch_size": "1"}},
        {"source": {"uri": "/data"}, "plan": {"type": "Sequential", "batch_size": 1}, "x": 1},
    ],
)
def test_a_stream_that_cannot_be_read_is_a_plan_error(desk: Desk, wrong: dict[str, Any]) -> None:
    desk.trust("*")
    with pytest.raises(PlanError, match="the stream cannot be read"):
        desk.bind(wrong)


# ---- trust ---------------------------------------------------------------------------------------


def test_nothing_is_allowed_by_default(desk: Desk) -> None:
    with pytest.raises(TrustError, match=r"is not below \[trust\] allow_sources \(empty\)"):
        desk.bind(plain(stream_of(desk.data)))


@pytest.mark.parametrize("prefix", ["{root}/data", "{root}/data/", "{root}", "/", "*"])
def test_a_prefix_allows_itself_and_what_is_below(desk: Desk, prefix: str) -> None:
    desk.trust("/nowhere", prefix.format(root=desk.root))
    assert desk.bind(plain(stream_of(desk.data))).name == ""


@pytest.mark.parametrize(
    "path",
    [
        "{root}/data-2",  # a prefix of the name is no folder above it
        "{root}/data/../data-2",
        "{root}/data/../../../../../../../../../{root}/data-2",
        "{root}/data/link",
        "file://{root}/data/%2e%2e/data-2",
        "{root}",
        "/",
    ],
)
def test_nothing_beside_a_prefix_is_allowed(desk: Desk, path: str) -> None:
    other = desk.folder("data-2", 1)
    (desk.data / "link").symlink_to(other)
    desk.trust(os.fspath(desk.data))
    with pytest.raises(TrustError, match="is not below"):
        desk.bind(plain(stream_of(path.format(root=desk.root))))


def test_a_prefix_may_be_a_link(desk: Desk) -> None:
    (desk.root / "link").symlink_to(desk.data)
    desk.trust(os.fspath(desk.root / "link"))
    desk.bind(plain(stream_of(desk.data)))
    desk.bind(plain(stream_of(desk.root / "link")))


def test_a_prefix_may_begin_with_the_home_folder(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", os.fspath(desk.root))
    desk.trust("~/data")
    desk.bind(plain(stream_of(desk.data)))


def test_every_source_of_a_stream_must_be_allowed(desk: Desk) -> None:
    desk.folder("data-2", 1)
    desk.trust(os.fspath(desk.data))
    both = Objects([os.fspath(desk.data), os.fspath(desk.root / "data-2")])
    with pytest.raises(TrustError, match=f"source {desk.root}/data-2 is not below"):
        desk.bind(plain(Stream(both, Sequential(batch_size=1))))
    desk.trust(os.fspath(desk.data), os.fspath(desk.root / "data-{2..3}"))
    assert len(desk.bind(plain(Stream(both, Sequential(batch_size=1)))).source.manifest) == 11


@pytest.mark.parametrize(
    ("source", "is_right"),
    [
        (Objects("ais://b/x/"), True),
        (Objects("ais://b/x"), True),
        (Objects("ais://b/{1..2}/"), True),
        (Objects("ais://b/{1..3}/"), False),
        (Objects("ais://b"), False),
        (Objects("ais://b/xy"), False),
        (Objects("s3://b/x/"), False),
        (Objects("/b/x"), False),
        (Objects("ais://b", prefixes=["x/a", "x/b"]), True),
        (Objects("ais://b", prefixes=["x/a", "y/b"]), False),
        (Objects("ais://b", names=["x/a", "1/b"]), True),
        (Objects("ais://b", names=["x/a", "x-1"]), False),
        (Objects(["ais://b/x", "ais://c"]), False),
        (Objects(["ais://b/x", "ais://c"], prefixes={"ais://c": []}), True),
    ],
    ids=repr,
)
def test_prefixes_and_names_of_buckets_are_looked_at_one_by_one(
    source: Objects, is_right: bool
) -> None:
    entries = ("ais://b/x", "ais://b/{1..2}/", "/data")
    found = [is_allowed(selection, entries) for selection in source.selections]
    assert all(found) is is_right


def test_a_refusal_tells_nothing_of_what_is_there(desk: Desk) -> None:
    desk.trust("/nowhere")
    refusals = []
    for folder in (desk.data, desk.root / "missing"):
        with pytest.raises(TrustError) as refusal:
            desk.bind(plain(stream_of(folder)))
        refusals.append(str(refusal.value).replace(os.fspath(folder), "PATH"))
    assert refusals[0] == refusals[1]


# ---- where in it ---------------------------------------------------------------------------------


def test_without_a_start_it_is_the_beginning(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data))
    bound = desk.bind("train")
    assert (bound.cursor.epoch, bound.cursor.step, bound.steps, bound.remaining) == (0, 0, 4, 4)
    assert bound.samples_per_batch == 3


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ({"epoch": 2}, (2, 0, 4, 4)),
        ({"update": 6}, (1, 2, 4, 2)),
        ({"sample": 16}, (1, 2, 4, 2)),
    ],
)
def test_a_seek_goes_anywhere(
    desk: Desk, place: dict[str, int], found: tuple[int, int, int, int]
) -> None:
    desk.configure(train=stream_of(desk.data))
    bound = desk.bind("train", {"seek": place})
    assert (bound.cursor.epoch, bound.cursor.step, bound.steps, bound.remaining) == found


def test_a_cursor_continues_under_another_world_size(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data, batch_size=1))
    cursor = desk.bind("train", {"seek": {"update": 4}}).cursor
    bound = desk.bind("train", cursor.to_state(), Topology(1, 3))
    assert (bound.cursor, bound.remaining, bound.steps) == (cursor, 2, 6)
    assert bound.samples_per_batch == 1


def test_a_cursor_at_the_end_of_an_epoch_is_the_start_of_the_next(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data, batch_size=4, tail="drop"))
    late = msgspec.structs.replace(desk.bind("train").cursor, step=2, position=8, update=2)
    bound = desk.bind("train", late.to_state())
    assert (bound.cursor.epoch, bound.cursor.position) == (1, 0)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ({"seek": {}}, "exactly one of"),
        ({"seek": {"epoch": 1, "update": 2}}, "exactly one of"),
        ({"seek": {"epoch": -1}}, "seek epoch=-1 is out of range"),
        ({"seek": {"epoch": "1"}}, "seek cannot be read"),
        ({"seek": 3}, "seek cannot be read"),
        ({"seek": {"sample": 4}}, "not the edge of a batch: the nearest are 3 and 6"),
        ({"seek": {"update": 2**62}}, "out of range"),
        ({}, "not a Headrace cursor"),
        ({"seek": {"epoch": 1}, "epoch": 1}, "not a Headrace cursor"),
        ({"format": 99}, "format 99"),
    ],
)
def test_a_start_that_is_no_place_is_a_cursor_error(
    desk: Desk, start: dict[str, Any], reason: str
) -> None:
    desk.configure(train=stream_of(desk.data))
    with pytest.raises(CursorError, match=reason):
        desk.bind("train", start)


def test_the_cursor_of_another_plan_is_refused_with_both(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data), other=stream_of(desk.data, batch_size=4))
    state = desk.bind("other").cursor.to_state()
    with pytest.raises(CursorError, match=f"belongs to plan {state['plan'][:12]}…"):
        desk.bind("train", state)


def test_the_cursor_of_another_manifest_is_refused_with_both(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data), other=stream_of(desk.folder("other", 11)))
    state = desk.bind("other").cursor.to_state()
    with pytest.raises(
        ManifestMismatchError, match=f"belongs to manifest {state['manifest'][:12]}…"
    ):
        desk.bind("train", state)


def test_a_world_that_does_not_divide_the_batch_is_refused_with_those_that_do(desk: Desk) -> None:
    stream = Stream(Objects(os.fspath(desk.data)), Sequential(global_batch_size=6))
    desk.configure(train=stream)
    with pytest.raises(PlanError, match="usable world sizes: 1, 2, 3, 6"):
        desk.bind("train", None, Topology(0, 4))


def test_a_plan_that_makes_no_step_is_refused(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.data, batch_size=11, tail="drop"))
    with pytest.raises(PlanError, match="leaves no step: the manifest has 10 samples"):
        desk.bind("train")


def test_a_missing_folder_is_a_source_error(desk: Desk) -> None:
    desk.configure(train=stream_of(desk.root / "missing"))
    with pytest.raises(SourceMissingError, match="missing does not exist"):
        desk.bind("train")


def test_ranks_outside_the_world_do_not_exist() -> None:
    with pytest.raises(TopologyError, match="rank=2 is out of range"):
        Topology(2, 2)
