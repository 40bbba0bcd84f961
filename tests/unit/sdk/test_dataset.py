"""Passes over a dataset: what a loop gets, and what ends it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from torch._C._distributed_c10d import HashStore
from torch.utils.data import DataLoader

from headrace import DaemonDataset, Objects, Stream, Topology, errors
from headrace.batch import Batch
from headrace.plans import Sequential, Shuffled
from headrace.ranks import meeting
from headrace.testing import FakeDaemon, ledger_of
from tests.support.fakes import LyingDaemon, fake, places, receivers, samples, take

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headrace.protocol import messages as m

SHUFFLED = Shuffled(batch_size=3, seed=17)
STREAM = Stream(Objects("/data"), Sequential(batch_size=2))


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """Ten samples in five steps of two, in order."""
    with fake() as daemon:
        yield daemon


# ---- passes --------------------------------------------------------------------------------------


def test_a_batch_is_what_the_plan_says(daemon: FakeDaemon) -> None:
    first = next(iter(daemon.dataset()))
    assert list(first) == [("s000", b""), ("s001", b"001")]
    assert first.indices.tolist() == [0, 1]
    assert (first.meta["epoch"], first.meta["step"], first.meta["global_step"]) == (0, 0, 0)
    assert first.cursor.step == 1


def test_each_pass_is_the_next_epoch_with_each_sample_once() -> None:
    with fake(11, SHUFFLED) as daemon:
        dataset = daemon.dataset()
        passes = [list(dataset) for _ in range(3)]
    assert [places(batches) for batches in passes] == [
        [(epoch, step) for step in range(4)] for epoch in range(3)
    ]
    orders = [[key for batch in batches for key in batch.sample_keys] for batches in passes]
    assert all(sorted(order) == sorted(samples(11)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_passes_share_one_feed(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    for _ in range(3):
        assert len(list(dataset)) == 5
    assert len(daemon.opened) == 1


def test_break_abandons_the_rest_of_the_epoch(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    for batch in dataset:
        if batch.meta["step"] == 1:
            break
    assert dataset.state_dict()["step"] == 2
    assert dataset.state_dict()["epoch"] == 0
    assert places(dataset) == [(1, step) for step in range(5)]


def test_break_in_the_last_batch_abandons_nothing(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    for batch in dataset:
        if batch.meta["step"] == 4:
            break
    assert places(dataset) == [(1, step) for step in range(5)]
    assert places(dataset) == [(2, step) for step in range(5)]
    assert len(daemon.opened) == 1, "the feed went on"


def test_break_in_every_batch(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    seen = []
    for _ in range(4):
        for batch in dataset:
            seen += places([batch])
            break
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_iter_alone_has_no_effect(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    first, second = iter(dataset), iter(dataset)
    assert daemon.opened == []
    assert take(second, 2) == [(0, 0), (0, 1)]
    iter(dataset)
    assert take(second, 1) == [(0, 2)]
    assert next(first).meta["epoch"] == 1
    assert len(daemon.opened) == 2


def test_a_pass_that_was_overtaken_says_so(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    first = iter(dataset)
    assert take(first, 2) == [(0, 0), (0, 1)]
    second = iter(dataset)
    assert take(second, 1) == [(1, 0)]
    for _ in range(2):
        with pytest.raises(errors.FeedError, match="this pass was ended by a newer one"):
            next(first)
    assert take(second, 4) == [(1, step) for step in range(1, 5)], "the newer one goes on"


def test_a_pass_that_is_over_stays_over(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    assert iter(batches) is batches
    assert len(list(batches)) == 5
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)
    assert dataset.state_dict()["epoch"] == 1


def test_no_more_is_sent_than_was_asked_for(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset(prefetch_batches=3)
    batches = iter(dataset)
    for consumed in range(1, 12):
        try:
            next(batches)
        except StopIteration:
            batches = iter(dataset)
        assert daemon.num_sent <= consumed + 3
    assert daemon.opened[0].prefetch == 3


@pytest.mark.parametrize("prefetch_batches", [1, 2, 4, 64])
def test_depth_changes_nothing(prefetch_batches: int) -> None:
    with fake(23, SHUFFLED) as daemon:
        shallow, deep = daemon.dataset(), daemon.dataset(prefetch_batches=prefetch_batches)
        for _ in range(2):
            assert ledger_of(shallow).entries == ledger_of(deep).entries


def test_a_lost_connection_changes_nothing() -> None:
    with fake(23, SHUFFLED) as daemon:
        whole = daemon.dataset()
        expected = [ledger_of(whole).entries for _ in range(3)]
        for number in (1, 2, 3, 7, 8):  # an epoch has 8 steps
            daemon.hang_up_after = number
            broken = daemon.dataset()
            assert [ledger_of(broken).entries for _ in range(3)] == expected
            daemon.hang_up_after = None


def test_a_lost_connection_between_any_two_batches_changes_nothing(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    seen = []
    for _ in range(2):
        for batch in dataset:
            seen += places([batch])
            daemon.hang_up()
    assert seen == [(epoch, step) for epoch in range(2) for step in range(5)]


# ---- the functions of the user -------------------------------------------------------------------


def test_a_transform_makes_columns(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset(transform=lambda s: {"size": len(s["data"]), "name": s["__key__"]})
    batch = next(iter(dataset))
    assert isinstance(batch, Batch)
    assert torch.equal(batch["size"], torch.tensor([0, 3]))
    assert batch["name"] == ["s000", "s001"]
    assert dataset.state_dict(after=batch) == dataset.state_dict()


def test_a_collation_makes_what_the_loop_gets(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset(collate_fn=lambda rows: [row["__key__"] for row in rows])
    assert next(iter(dataset)) == ["s000", "s001"]


@pytest.mark.parametrize(
    "collate_fn",
    [
        lambda rows: torch.zeros(len(rows)),
        lambda rows: {"x": rows},
        lambda rows: tuple(rows),
        lambda rows: [{"a": {}, "b": {"c": rows}}],
        lambda rows: {},
        lambda rows: None,
    ],
)
def test_the_position_does_not_depend_on_what_a_collation_returns(
    daemon: FakeDaemon, collate_fn: Callable[[list[Any]], Any]
) -> None:
    plain, collated = daemon.dataset(), daemon.dataset(collate_fn=collate_fn)
    for _, _ in zip(plain, collated, strict=True):
        assert plain.state_dict() == collated.state_dict()


class Broken:
    """A transform that fails at some samples, once or always."""

    def __init__(self, *names: str, error: BaseException | None = None) -> None:
        self.names = list(names)
        self.error = error or ValueError("no image")

    def __call__(self, sample: dict[str, Any]) -> object:
        if sample["__key__"] in self.names:
            raise self.error
        return sample["data"]


def test_an_error_in_a_transform_ends_the_pass_and_the_state_stays_before_the_batch(
    daemon: FakeDaemon,
) -> None:
    transform = Broken("s005")
    dataset = daemon.dataset(transform=transform)
    batches = iter(dataset)
    next(batches)
    next(batches)
    before = dataset.state_dict()
    for _ in range(2):
        with pytest.raises(ValueError, match="no image"):
            next(batches)
    assert dataset.state_dict() == before
    assert before["step"] == 2
    transform.names.clear()
    dataset.load_state_dict(before)
    assert len(list(dataset)) == 3


def test_an_error_in_the_first_batch_leaves_the_position_at_the_start(daemon: FakeDaemon) -> None:
    transform = Broken("s000")
    dataset = daemon.dataset(transform=transform)
    with pytest.raises(ValueError, match="no image"):
        next(iter(dataset))
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["step"]) == (0, 0)
    transform.names.clear()
    assert len(list(dataset)) == 5


def test_an_interrupt_ends_the_pass_and_the_state_stays_before_the_batch(
    daemon: FakeDaemon,
) -> None:
    dataset = daemon.dataset(transform=Broken("s003", error=KeyboardInterrupt()))
    batches = iter(dataset)
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert dataset.state_dict()["step"] == 1
    assert dataset._receiver is None, "the feed is ended"


def test_a_stop_iteration_in_a_transform_is_no_end_of_the_epoch(daemon: FakeDaemon) -> None:
    """An exhausted iterator in user code must not pass for an epoch that is over."""
    dataset = daemon.dataset(transform=Broken("s002", error=StopIteration()))
    batches = iter(dataset)
    next(batches)
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(batches)
    assert dataset.state_dict()["step"] == 1


# ---- who this process is -------------------------------------------------------------------------


def test_ranks_share_each_step() -> None:
    with fake(12, Shuffled(global_batch_size=4, seed=3)) as daemon:
        whole = daemon.dataset(topology=Topology())
        ranks = [daemon.dataset(topology=Topology(rank, 2)) for rank in range(2)]
        for alone, zero, one in zip(whole, *ranks, strict=True):
            assert sorted(alone.sample_keys) == sorted(zero.sample_keys + one.sample_keys)
            assert alone.cursor.position == zero.cursor.position == one.cursor.position
    assert [(o.rank, o.world_size) for o in daemon.opened] == [(0, 1), (0, 2), (1, 2)]


def test_topology_comes_from_the_environment(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert next(iter(daemon.dataset())).sample_keys == ["s001", "s003"]
    assert next(iter(daemon.dataset(topology=Topology()))).sample_keys == ["s000", "s001"]


def join_group(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)


def test_topologies_that_contradict_each_other_are_refused(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    join_group(monkeypatch, 3, 4)
    store = HashStore()
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", lambda: store)
    dataset = daemon.dataset()
    met = meeting()
    assert met is not None
    with pytest.raises(errors.TopologyError, match=r"rank 3 of 4, .* RANK=1 WORLD_SIZE=2"):
        next(iter(dataset))
    name = met._replace(number=met.number + 1).mine
    assert store.check([name]), "nobody has to wait for it"
    assert b"torch.distributed says rank 3 of 4" in store.get(name)


def test_ranks_compare_in_the_main_thread_only(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass in another thread may come at any time, among meetings of others."""
    met: list[str] = []

    def meet(group: object) -> None:
        met.append(threading.current_thread().name)

    monkeypatch.setattr("headrace.dataset.meeting", meet)
    for options, times in (({}, 1), ({"check_ranks": False}, 0), ({"topology": Topology()}, 0)):
        thread = threading.Thread(target=next, args=(iter(daemon.dataset(**options)),))
        thread.start()
        thread.join()
        assert met == []
        next(iter(daemon.dataset(**options)))
        assert met == [threading.main_thread().name] * times
        met.clear()


def test_questions_do_not_settle_the_topology(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers want `len` before the process group is there."""
    dataset = daemon.dataset()
    assert len(dataset) == 5
    assert dataset.state_dict()["step"] == 0
    join_group(monkeypatch, 1, 2)
    monkeypatch.setattr(dataset, "_check_ranks", False)  # the group has no store
    assert len(dataset) == 3
    assert next(iter(dataset)).sample_keys == ["s001", "s003"]
    assert (daemon.opened[0].rank, daemon.opened[0].world_size) == (1, 2)


def test_the_first_pass_settles_the_topology(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = daemon.dataset()
    next(iter(dataset))
    join_group(monkeypatch, 1, 2)
    assert len(dataset) == 5


# ---- questions -----------------------------------------------------------------------------------


def test_manifest_knows_each_sample(daemon: FakeDaemon) -> None:
    manifest = daemon.dataset().manifest
    assert len(manifest) == 10
    assert manifest.digest == daemon.manifest.digest
    assert manifest[3] == ("s003", 9)
    assert manifest[-1] == manifest[9] == ("s009", 12)
    assert manifest[np.uint64(3)] == ("s003", 9)  # type: ignore[call-overload]  # as in batch.indices
    assert manifest[2:4] == [("s002", 6), ("s003", 9)]
    assert manifest[::-4] == [("s009", 12), ("s005", 0), ("s001", 3)]
    assert manifest[20:] == []


@pytest.mark.parametrize("index", [10, -11])
def test_manifest_names_an_index_outside_of_it(daemon: FakeDaemon, index: int) -> None:
    with pytest.raises(IndexError, match=rf"sample {index} is outside the manifest of 10 samples"):
        daemon.dataset().manifest[index]


def test_manifest_of_thousands_is_asked_for_in_pieces() -> None:
    with fake(3000) as daemon:
        dataset = daemon.dataset()
        asked = 0
        connect = dataset._link.dial
        assert connect is not None

        def counting() -> socket.socket:
            nonlocal asked
            asked += 1
            return connect()

        dataset._link.dial = counting
        names = [name for name, _ in dataset.manifest]
        assert names == sorted(samples(3000))
        assert [name for name, _ in dataset.manifest[:]] == names
        assert asked <= 1 + 2 * 3


def test_read_returns_samples_in_the_order_of_the_indices(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    assert dataset.read([3, 0, 3]) == [("s003", b"003" * 3), ("s000", b""), ("s003", b"003" * 3)]
    assert dataset.read([]) == []
    batch = next(iter(dataset))
    assert dataset.read(batch.indices) == list(batch)
    assert dataset.read(range(10)) == sorted(samples(10).items())


def test_more_is_read_than_one_request_may_ask_for() -> None:
    with fake(200) as daemon:
        assert daemon.dataset().read(range(200)) == sorted(samples(200).items())


def test_questions_do_not_move_the_position(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    next(batches)
    before = dataset.state_dict()
    dataset.read([0])
    len(dataset)
    assert dataset.remaining == 4
    assert dataset.manifest[0].name == "s000"
    assert dataset.state_dict() == before
    assert take(batches, 1) == [(0, 1)]


def test_questions_survive_a_lost_connection(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    dial, dropped = dataset._link.dial, 0
    assert dial is not None

    def dropping() -> socket.socket:
        nonlocal dropped
        sock = dial()
        if dropped < 3:
            dropped += 1
            daemon.hang_up()
        return sock

    dataset._link.dial = dropping
    assert len(dataset) == 5
    assert dropped == 3


# ---- lies ----------------------------------------------------------------------------------------


def skipping(header: m.Batch) -> m.Batch:
    if header.step < 2:
        return header
    return msgspec.structs.replace(
        header, step=header.step + 1, cursor={**header.cursor, "step": header.step + 2}
    )


def repeating(header: m.Batch) -> m.Batch:
    return msgspec.structs.replace(header, step=min(header.step, 1))


def misplacing(header: m.Batch) -> m.Batch:
    return msgspec.structs.replace(header, cursor={**header.cursor, "epoch": header.epoch + 2})


def overlapping(header: m.Batch) -> m.Batch:
    return msgspec.structs.replace(header, off=b"\xff" * len(header.off))


@pytest.mark.parametrize("lie", [skipping, repeating, misplacing, overlapping])
def test_a_daemon_that_lies_is_caught(lie: Callable[[m.Batch], m.Batch]) -> None:
    with LyingDaemon(lie) as daemon:
        dataset = daemon.dataset()
        with pytest.raises(errors.RemoteProtocolError):
            list(dataset)
        assert dataset.state_dict()["step"] <= 2


# ---- construction --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefetch_batches": 0}, r"prefetch_batches=0 is out of range: .* 1\.\.4096"),
        ({"prefetch_batches": 4097}, "prefetch_batches=4097"),
        ({"prefetch_batches": 2.0}, r"prefetch_batches=2\.0"),
        ({"deadline_s": 0}, "deadline_s=0 must be above 0 seconds and finite"),
        ({"deadline_s": -1}, "deadline_s=-1"),
        ({"deadline_s": float("inf")}, "deadline_s=inf"),
        ({"deadline_s": float("nan")}, "deadline_s=nan"),
        ({"deadline_s": "5"}, "deadline_s='5'"),
        ({"deadline_s": None}, "deadline_s=None"),
        ({"decode": "auto"}, "decode='auto' is not available: use None"),
        ({"check_ranks": "no"}, "check_ranks='no' must be true or false"),
        ({"transform": 3}, "transform=3 cannot be called"),
        ({"collate_fn": [1]}, r"collate_fn=\[1\] cannot be called"),
        ({"topology": (0, 1)}, r"topology=\(0, 1\): give Topology\(rank, world_size\)"),
        ({"stream": 3}, r"stream=3 is no stream: give Stream\(source, plan\)"),
        ({"stream": Sequential(batch_size=1)}, "is no stream"),
        ({"socket": STREAM}, "is no path: give that of the daemon's socket first"),
        ({"socket": b"/s"}, "is no path"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.PlanError, match=words):
        DaemonDataset(**{"socket": "/s", **options})


def test_memory_of_a_private_daemon_is_text() -> None:
    with pytest.raises(errors.PlanError, match=r"memory=1024 is no size: give text, such as '512M"):
        DaemonDataset.local(STREAM, memory=1024)  # type: ignore[arg-type]


def test_a_dataset_is_made_without_a_daemon(tmp_path: Path) -> None:
    dataset = DaemonDataset(tmp_path / "no.sock", STREAM, deadline_s=0.01)
    with pytest.raises(errors.DaemonUnavailableError, match=r"no\.sock does not exist"):
        next(iter(dataset))
    with pytest.raises(errors.DaemonUnavailableError, match=r"no\.sock does not exist"):
        len(dataset)


def test_the_socket_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADRACE_SOCKET", str(tmp_path / "from_env.sock"))
    with pytest.raises(errors.DaemonUnavailableError, match=r"from_env\.sock does not exist"):
        len(DaemonDataset(deadline_s=0.01))


def test_what_is_asked_for_by_name_travels_as_a_name(daemon: FakeDaemon) -> None:
    for stream, wire in ((None, ""), ("train", "train")):
        dataset = DaemonDataset("/s", stream)
        dataset._link.dial = daemon._dial
        next(iter(dataset))
        assert daemon.opened[-1].stream == wire


def test_a_relative_folder_is_anchored_where_the_trainer_runs(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = DaemonDataset("/s", Stream(Objects("images"), Sequential(batch_size=2)))
    dataset._link.dial = daemon._dial
    next(iter(dataset))
    stream: Any = daemon.opened[-1].stream
    assert stream["source"]["uri"] == str(tmp_path / "images")


# ---- torch ---------------------------------------------------------------------------------------


def test_a_data_loader_without_workers_hands_batches_through(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    loader = DataLoader(dataset, batch_size=None)
    assert len(loader) == 5
    assert [places(loader) for _ in range(2)] == [
        [(epoch, step) for step in range(5)] for epoch in range(2)
    ]
    assert dataset.state_dict()["epoch"] == 2


def test_a_data_loader_that_would_batch_batches_is_refused(daemon: FakeDaemon) -> None:
    for batch_size in (1, 8):
        with pytest.raises(TypeError, match="batch_size=None"):
            next(iter(DataLoader(daemon.dataset(), batch_size=batch_size)))


def test_batches_that_torch_would_stack_without_a_word_are_refused(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset(collate_fn=lambda rows: torch.zeros(len(rows)))
    for batch_size in (1, 8):
        with pytest.raises(TypeError, match="batch_size=None"):
            next(iter(DataLoader(dataset, batch_size=batch_size)))


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_dataset_of_a_fake_daemon_cannot_be_duplicated(
    daemon: FakeDaemon, duplicate: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match="of a FakeDaemon cannot be pickled"):
        duplicate(daemon.dataset())


def unpickled(dataset: DaemonDataset) -> DaemonDataset:
    made = pickle.loads(pickle.dumps(dataset))
    assert isinstance(made, DaemonDataset)
    return made


@pytest.mark.parametrize("duplicate", [unpickled, copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way_from_the_same_position(
    daemon: FakeDaemon, duplicate: Callable[[DaemonDataset], DaemonDataset]
) -> None:
    dataset = DaemonDataset("/fake", daemon.stream, topology=Topology())
    dataset._link.dial = daemon._dial
    batches = iter(dataset)
    take(batches, 2)
    dataset._link.dial = None
    copied = duplicate(dataset)
    dataset._link.dial = copied._link.dial = daemon._dial
    assert copied._board is not dataset._board
    assert places(copied) == [(1, step) for step in range(5)]
    assert take(batches, 1) == [(0, 2)]


def test_a_copy_settles_the_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process that is started elsewhere would find there may be something else."""
    dataset = DaemonDataset("/s", STREAM)
    join_group(monkeypatch, 1, 2)
    assert unpickled(dataset)._topology == Topology(1, 2)


# ---- the end -------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_dataset_that_is_dropped_frees_its_thread_and_its_socket(daemon: FakeDaemon) -> None:
    before = descriptors()
    dataset = daemon.dataset()
    next(iter(dataset))
    (thread,) = receivers()
    gone = weakref.ref(dataset)
    del dataset
    assert gone() is None, "nothing else holds it"
    thread.join()
    daemon.close()
    assert descriptors() == before


def test_a_pass_keeps_its_dataset(daemon: FakeDaemon) -> None:
    batches = iter(daemon.dataset())
    assert take(batches, 5) == [(0, step) for step in range(5)]
    (thread,) = receivers()
    del batches
    gc.collect()
    thread.join()


def test_close_ends_the_feed_and_keeps_the_position(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    take(batches, 2)
    dataset.close()
    assert receivers() == []
    assert dataset.state_dict()["step"] == 2
    with pytest.raises(errors.FeedError, match=r"or by seek\(\), load_state_dict\(\) or close\(\)"):
        next(batches)
    dataset.close()
    dataset.load_state_dict(dataset.state_dict())
    assert places(dataset) == [(0, 2), (0, 3), (0, 4)]


def test_close_in_another_thread_wakes_the_loop(daemon: FakeDaemon) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def transform(sample: dict[str, Any]) -> object:
        arrived.set()
        assert go_on.wait(20)
        return sample

    dataset = daemon.dataset(transform=transform)
    ended: list[BaseException] = []

    def loop() -> None:
        try:
            list(dataset)
        except errors.FeedError as error:
            ended.append(error)

    looping = threading.Thread(target=loop)
    looping.start()
    assert arrived.wait(20)
    dataset.close()
    go_on.set()
    looping.join()
    assert "this pass was ended" in str(ended[0])
