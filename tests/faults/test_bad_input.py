"""What is wrong is one clear error: the thing, the value, the limit, the next step."""

from __future__ import annotations

import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from headrace import DaemonDataset, Stream, Topology, errors
from headrace.plans import Sequential, Shuffled
from headrace.protocol import messages as m
from headrace.testing import Ledger
from headrace_daemon.settings import TrustSettings
from tests.support.app import AppThread, Reads
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import check, content, stream_of, write_samples
from tests.support.planning import bind
from tests.support.scripted import ScriptedDaemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headrace.plans import Plan
    from tests.support.trainers import Trainers

NOBODY = 65534
_NINE = np.arange(9, dtype=np.uint64)


@pytest.fixture
def app() -> Iterator[AppThread]:
    with AppThread() as app:
        yield app


def refused(
    socket: str,
    stream: Stream | str | None,
    kind: type[Exception],
    **options: Any,  # noqa: ANN401 - of any type
) -> str:
    """Return the words with which a stream is refused, to a loop and to questions alike."""
    asks: tuple[Callable[[DaemonDataset], object], ...] = (
        lambda dataset: next(iter(dataset)),
        len,
        lambda dataset: dataset.manifest[0],
    )
    words = set()
    for ask in asks:
        with pytest.raises(kind) as caught:
            ask(DaemonDataset(socket, stream, **options))
        words.add(str(caught.value))
    assert len(words) == 1, "the same fault is the same sentence"
    return words.pop()


# ---- the folder ----------------------------------------------------------------------------------


def test_a_missing_folder_is_named(app: AppThread, tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "nowhere", Sequential(batch_size=1))
    assert refused(app.socket, stream, errors.FeedError) == (
        f"folder {tmp_path}/nowhere does not exist ({tmp_path}/nowhere is missing): check the path"
    )


def test_a_folder_that_is_a_file_is_named(app: AppThread, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream = stream_of(tmp_path / "file", Sequential(batch_size=1))
    words = refused(app.socket, stream, errors.FeedError)
    assert words == f"{tmp_path}/file is not a folder: give the folder"


def test_an_empty_folder_is_named(app: AppThread, tmp_path: Path) -> None:
    stream = stream_of(tmp_path, Sequential(batch_size=1))
    words = refused(app.socket, stream, errors.FeedError)
    assert words == f"folder {tmp_path} has no file: a stream needs at least one sample"
    (tmp_path / "image.png").touch()
    source = msgspec.structs.replace(stream.source, suffix=(".jpg", ".jpeg"))
    words = refused(app.socket, Stream(source, stream.plan), errors.FeedError)
    assert "has no file whose name ends with .jpg or .jpeg" in words


def test_a_folder_that_was_empty_may_be_filled(app: AppThread, tmp_path: Path) -> None:
    stream = stream_of(tmp_path, Sequential(batch_size=4))
    dataset = DaemonDataset(app.socket, stream)
    with pytest.raises(errors.FeedError, match="has no file"):
        next(iter(dataset))
    write_samples(tmp_path, 10)
    assert len(list(dataset)) == 3
    dataset.close()


# ---- files that change after the listing ---------------------------------------------------------


def vanish(path: Path) -> str:
    path.unlink()
    return "is in the manifest but not there any more: restore it, or list anew with 'headrace"


def grow(path: Path) -> str:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"!")
    return f"has {size + 1} bytes, the manifest says {size}: it was changed after the listing"


def shrink(path: Path) -> str:
    size = path.stat().st_size
    path.write_bytes(b"")
    return f"has 0 bytes, the manifest says {size}: it was changed after the listing"


def become_a_folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "is no file any more: it was changed after the listing"


@pytest.mark.parametrize("prefetch_batches", [1, 64])
@pytest.mark.parametrize("change", [vanish, grow, shrink, become_a_folder])
def test_a_file_that_changes_after_the_listing_ends_the_stream_at_its_batch(
    tmp_path: Path, change: Callable[[Path], str], prefetch_batches: int
) -> None:
    folder = write_samples(tmp_path / "data", 40)
    stream = stream_of(folder, Shuffled(batch_size=4, seed=1))
    truth = expected(stream)
    reads = Reads(5)
    with AppThread(reads=reads) as app:
        dataset = DaemonDataset(app.socket, stream, prefetch_batches=prefetch_batches)
        assert len(dataset) == 10  # listed
        # The first sample of the seventh batch that has some bytes.
        entries = [dataset.manifest[index] for index in truth.entries[6].ids]
        number, (name, size) = next(
            (number, entry) for number, entry in enumerate(entries) if entry.size
        )
        words = change(folder / name)
        ledger = Ledger()
        with pytest.raises(errors.FeedError, match=words) as caught:
            for batch in dataset:
                ledger.record(batch)
        assert str(folder / name) in str(caught.value)
        assert (caught.value.code, caught.value.fault) == ("source", "data")
        assert ledger.entries == truth.entries[:6], "what came before it is delivered"
        with pytest.raises(errors.FeedError, match=words):
            dataset.read([truth.entries[6].ids[number]])
        # The state is that before the batch, and loads when the file is as it was.
        state = dataset.state_dict()
        if (folder / name).is_dir():
            (folder / name).rmdir()
        (folder / name).write_bytes(content(name, size))
        dataset.load_state_dict(state)
        for batch in dataset:
            ledger.record(batch)
        dataset.close()
        assert ledger.entries == truth.entries
        app.wait_until(lambda: app.app.report()["memory"]["held_bytes"] == 0)


def test_files_that_come_later_change_nothing_in_a_run(app: AppThread, tmp_path: Path) -> None:
    folder = write_samples(tmp_path, 20)
    stream = stream_of(folder, Shuffled(batch_size=4, seed=1))
    truth = expected(stream, epochs=2)
    ledger = Ledger()
    dataset = DaemonDataset(app.socket, stream)
    for _ in range(2):
        for batch in dataset:
            check(batch)
            ledger.record(batch)
            write_samples(folder / f"more{batch.meta['global_step']}", 2)
    dataset.close()
    assert ledger.difference(truth) is None
    assert len(dataset.manifest) == 20


# ---- the socket ----------------------------------------------------------------------------------


def test_a_wrong_socket_path_is_named_soon(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, Sequential(batch_size=1))
    path = tmp_path / "headrace.sock"
    assert refused(str(path), stream, errors.DaemonUnavailableError, deadline_s=0.05) == (
        f"no daemon: socket {path} does not exist; start one with 'headrace serve', pass its "
        "socket, or set HEADRACE_SOCKET (tried for 0.05 s)"
    )


def test_a_socket_path_that_is_a_file_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream = stream_of(tmp_path, Sequential(batch_size=1))
    words = refused(str(tmp_path / "file"), stream, errors.DaemonUnavailableError)
    assert words.startswith(f"{tmp_path}/file is not a socket; start one with 'headrace serve'")


@pytest.mark.parametrize("where", ["socket", "folder"])
def test_a_socket_without_permission_is_named_at_once(
    trainers: Trainers, tmp_path: Path, where: str
) -> None:
    stream = msgspec.to_builtins(stream_of(write_samples(tmp_path, 5), Sequential(batch_size=1)))
    with DaemonProcess() as daemon:
        if where == "socket":
            daemon.folder.chmod(0o755)
        uid, mode = NOBODY, 0o660
        if os.geteuid():  # we cannot become somebody else; what is ours can be taken from us
            uid, mode = os.geteuid(), 0
            os.chmod(daemon.socket if where == "socket" else daemon.folder, mode)
        try:
            trainer = trainers.start("stranger", stream=stream, socket=daemon.socket, uid=uid)
            said = trainer.hear()
        finally:
            daemon.folder.chmod(0o755)
        assert trainer.wait() == 0, trainer.stderr
    assert said.startswith(
        f"UnusableSocketError no permission to connect to socket {daemon.socket}"
    ), trainer.stderr
    if where == "socket":
        assert f"(mode {mode:04o}, uid " in said
    assert said.endswith("join its group, or ask for another one in [daemon] group")


def test_a_user_who_is_not_on_the_list_is_told(tmp_path: Path) -> None:
    trust = TrustSettings(allow_sources=("*",), allow_uids=(NOBODY - 1,))
    stream = stream_of(write_samples(tmp_path, 5), Sequential(batch_size=1))
    with AppThread().configure(trust=trust) as app:
        words = refused(app.socket, stream, errors.FeedError)
    assert words == f"user id {os.geteuid()} is not in [trust] allow_uids"


def test_a_daemon_of_another_version_is_named(tmp_path: Path) -> None:
    with ScriptedDaemon() as daemon:
        dataset = DaemonDataset("/s", stream_of(tmp_path, Sequential(batch_size=1)))
        dataset._link.dial = daemon.dial

        def answer() -> None:
            conversation = daemon.accept()
            conversation.hear(m.Hello)
            conversation.say(m.Welcome(version=7, agent="headrace-daemon/9.0"))

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(errors.VersionMismatchError) as caught:
            next(iter(dataset))
        answering.join()
    assert str(caught.value) == (
        "the daemon (headrace-daemon/9.0) chose protocol version 7, this SDK speaks 1: upgrade the "
        "older of the two"
    )


# ---- the stream ----------------------------------------------------------------------------------


def test_a_stream_that_is_not_configured_is_named(tmp_path: Path) -> None:
    stream = stream_of(write_samples(tmp_path, 5), Sequential(batch_size=1))
    with AppThread() as app:
        words = refused(app.socket, "train", errors.PlanError)
        assert words == "stream 'train' is not configured; configured streams: none"
        words = refused(app.socket, None, errors.PlanError)
        assert "the configuration has no default_stream; configured streams: none" in words
    with AppThread().configure(streams={"eval": stream, "train": stream}) as app:
        words = refused(app.socket, "tarin", errors.PlanError)
        assert words == "stream 'tarin' is not configured; configured streams: eval, train"
        dataset = DaemonDataset(app.socket, "eval")
        assert next(iter(dataset)).meta["stream"] == "eval"
        dataset.close()


def test_a_source_that_is_not_allowed_is_named(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "mine", 5)
    (tmp_path / "ours").mkdir()
    stream = stream_of(folder, Sequential(batch_size=1))
    trust = TrustSettings(allow_sources=(str(tmp_path / "ours"), "/data"))
    with AppThread().configure(trust=trust) as app:
        words = refused(app.socket, stream, errors.FeedError)
        assert words == (
            f"source {folder} is not below [trust] allow_sources ({tmp_path}/ours, /data): add it "
            "there, or open a configured stream by name"
        )
        (tmp_path / "ours" / "link").symlink_to(folder)
        refused(app.socket, stream_of(tmp_path / "ours/link", stream.plan), errors.FeedError)


def test_a_batch_above_the_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    for index in range(8):
        (tmp_path / f"{index}").write_bytes(bytes(100_000))
    stream = stream_of(tmp_path, Sequential(batch_size=4))
    with AppThread(memory="500kB") as app:
        dataset = DaemonDataset(app.socket, stream)
        with pytest.raises(errors.BudgetError) as caught:
            next(iter(dataset))
        words = str(caught.value)
        assert str(tmp_path) in words
        assert "needs 2 slots of 400128 bytes (the largest batch, 4 samples, of epoch 0)" in words
        assert "800256 bytes" in words
        assert "the budget is 500000 bytes ([daemon] memory)" in words
        assert "raise memory to at least 800256 bytes, or use a smaller batch" in words
        assert len(dataset) == 2, "questions need no memory for batches"
        assert app.call(app.app.report)["memory"]["guaranteed_bytes"] == 0
        small = DaemonDataset(app.socket, Stream(stream.source, Sequential(batch_size=2)))
        assert len(list(small)) == 4
        small.close()


def growing_plan() -> Plan:
    """Return a shuffle that puts three certain samples of nine together in its second epoch."""
    for seed in range(10_000):  # one in a hundred or so does
        plan = Shuffled(batch_size=3, seed=seed)
        largest = []
        for epoch in range(2):
            order = bind(plan, 9).order.at(epoch, _NINE)
            steps = order.reshape(3, 3)
            largest.append(max(sum(index < 3 for index in step) for step in steps.tolist()))
        if largest == [1, 3]:
            return plan
    raise AssertionError("no seed does")


def test_an_epoch_above_the_budget_ends_the_stream_at_its_edge(tmp_path: Path) -> None:
    """What was planned before it is read and delivered, although the planning has failed."""
    for index in range(9):
        (tmp_path / f"{index}").write_bytes(bytes(100_000 if index < 3 else 10))
    reads = Reads()
    with AppThread(memory="250kB", reads=reads) as app:
        app.call(reads.close_gate)
        dataset = DaemonDataset(app.socket, stream_of(tmp_path, growing_plan()), prefetch_batches=1)
        batches = iter(dataset)
        receiving = threading.Thread(target=lambda: seen.append(next(batches).meta["step"]))
        seen: list[int] = []
        receiving.start()
        app.wait_until(lambda: len(reads.names) >= 3)  # reads are under way
        app.call(reads.open_gate)
        receiving.join()
        seen += [next(batches).meta["step"] for _ in range(2)]
        assert seen == [0, 1, 2]
        assert next(batches, None) is None
        with pytest.raises(errors.BudgetError) as caught:
            next(iter(dataset))
        assert "epoch 1" in str(caught.value)
        assert "250000 bytes" in str(caught.value)
        state = dataset.state_dict()
        assert (state["epoch"], state["step"]) == (1, 0)
        dataset.close()
        app.wait_until(lambda: app.app.report()["memory"]["guaranteed_bytes"] == 0)


def test_a_world_size_that_does_not_divide_is_refused_with_those_that_do(
    app: AppThread, tmp_path: Path
) -> None:
    stream = stream_of(write_samples(tmp_path, 30), Shuffled(global_batch_size=24))
    words = refused(app.socket, stream, errors.PlanError, topology=Topology(3, 7))
    assert words == (
        "global_batch_size=24 cannot be dealt to world_size=7 ranks equally; usable world sizes: "
        "1, 2, 3, 4, 6, 8, 12, 24"
    )


# ---- the state -----------------------------------------------------------------------------------


def test_a_state_of_another_plan_is_refused_by_the_daemon(tmp_path: Path) -> None:
    folder = write_samples(tmp_path, 20)
    mine, other = (stream_of(folder, Shuffled(batch_size=4, seed=seed)) for seed in (1, 2))
    with AppThread().configure(streams={"mine": mine, "other": other}) as app:
        dataset = DaemonDataset(app.socket, "mine")
        next(iter(dataset))
        foreign = DaemonDataset(app.socket, "other")
        foreign.load_state_dict(dataset.state_dict())
        with pytest.raises(errors.CursorError) as caught:
            next(iter(foreign))
        assert mine.plan.digest[:12] in str(caught.value)
        assert other.plan.digest[:12] in str(caught.value)
        assert "Shuffled(batch_size=4, seed=2)" in str(caught.value)
        foreign.seek(epoch=0)
        assert len(list(foreign)) == 5
        foreign.close()
        dataset.close()


def test_a_state_of_other_data_is_refused_by_the_daemon(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "data", 20)
    stream = stream_of(folder, Shuffled(batch_size=4, seed=1))
    with AppThread() as app:
        dataset = DaemonDataset(app.socket, stream)
        next(iter(dataset))
        state = dataset.state_dict()
        dataset.close()
    (folder / "one_more").write_bytes(b"x")
    with AppThread() as app:  # it has never seen the old one
        dataset = DaemonDataset(app.socket, stream)
        dataset.load_state_dict(state)
        for ask in (lambda: next(iter(dataset)), lambda: len(dataset), lambda: dataset.remaining):
            with pytest.raises(errors.ManifestMismatchError) as caught:
                ask()
            assert f"the cursor belongs to manifest {state['manifest'][:12]}…, {folder} has" in str(
                caught.value
            )
            assert "21 samples" in str(caught.value)
            assert "restore the data, or start anew with seek()" in str(caught.value)
        (folder / "one_more").unlink()
    with AppThread() as app:
        dataset = DaemonDataset(app.socket, stream)
        dataset.load_state_dict(state)
        assert len(list(dataset)) == 4, "the data is restored"
        dataset.close()


def test_a_daemon_that_comes_back_with_other_data_ends_the_pass(tmp_path: Path) -> None:
    folder = write_samples(tmp_path, 20)
    stream = stream_of(folder, Shuffled(batch_size=4, seed=1))
    with DaemonProcess() as daemon:
        dataset = DaemonDataset(daemon.socket, stream, prefetch_batches=1)
        batches = iter(dataset)
        next(batches)
        daemon.kill()
        shutil.rmtree(daemon.folder / "state")
        (folder / "one_more").write_bytes(b"x")
        daemon.start()
        with pytest.raises(errors.ManifestMismatchError, match="the cursor belongs to manifest"):
            list(batches)
        (folder / "one_more").unlink()
        daemon.kill()
        shutil.rmtree(daemon.folder / "state")
        daemon.start()
        dataset.load_state_dict(dataset.state_dict())
        assert list(dataset)[-1].meta["step"] == 4
        dataset.close()
