"""Positions of a dataset: where it stands, where it goes, and what it refuses to continue."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from headrace import DaemonDataset, Objects, Stream, Topology, errors
from headrace.plans import Cursor, Sequential, Shuffled
from headrace.plans.cursor import FORMAT, PLAN_VERSION
from headrace.testing import FakeDaemon, Ledger, ledger_of
from tests.support.fakes import fake, places, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.plans.cut import Tail

SHUFFLED = Shuffled(batch_size=3, seed=17)


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """Ten samples in five steps of two, in order."""
    with fake() as daemon:
        yield daemon


def stands(dataset: DaemonDataset) -> tuple[int, int]:
    """Return (epoch, step) of the next batch after a resume."""
    state = dataset.state_dict()
    return state["epoch"], state["step"]


# ---- the state -----------------------------------------------------------------------------------


def test_state_before_the_first_batch_is_the_start(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    state = dataset.state_dict()
    assert stands(dataset) == (0, 0)
    assert state["plan"] == daemon.stream.plan.digest
    assert state["manifest"] == daemon.manifest.digest
    assert daemon.opened == [], "asking does not begin a pass"
    resumed = daemon.dataset()
    resumed.load_state_dict(state)
    assert places(resumed) == [(0, step) for step in range(5)]


def test_state_follows_the_batch_that_was_given_not_those_read_ahead(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset(prefetch_batches=64)
    batches = iter(dataset)
    for step in range(1, 5):
        batch = next(batches)
        assert stands(dataset) == (0, step)
        assert dataset.state_dict() == dataset.state_dict(after=batch) == batch.cursor.to_state()
        assert dataset.state_dict(after=batch.cursor) == dataset.state_dict()


def test_state_of_a_middle_batch_is_that_of_gradient_accumulation(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    kept = [next(batches) for _ in range(4)][1]
    resumed = daemon.dataset()
    resumed.load_state_dict(dataset.state_dict(after=kept))
    assert places(resumed) == [(0, 2), (0, 3), (0, 4)]


def test_state_twice_is_the_same_and_not_shared(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    for _ in range(2):
        first, second = dataset.state_dict(), dataset.state_dict()
        assert first == second
        first["epoch"] = 99
        first["skips"].append(1)
        assert dataset.state_dict() == second
        next(iter(dataset))


def test_last_state_of_an_epoch_is_the_start_of_the_next(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    take(batches, 5)
    assert stands(dataset) == (1, 0)
    assert next(batches, None) is None
    assert stands(dataset) == (1, 0)
    resumed = daemon.dataset()
    resumed.load_state_dict(dataset.state_dict())
    assert places(resumed) == [(1, step) for step in range(5)]


def test_state_after_a_break_points_into_the_epoch_that_was_left(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    take(iter(dataset), 2)
    assert stands(dataset) == (0, 2)
    resumed = daemon.dataset()
    resumed.load_state_dict(dataset.state_dict())
    assert places(resumed) == [(0, 2), (0, 3), (0, 4)]
    assert places(dataset) == [(1, step) for step in range(5)]


def test_state_is_small_json_of_constant_size(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    sizes = set()
    for _ in range(3):
        for _ in dataset:
            state = dataset.state_dict()
            assert json.loads(json.dumps(state)) == state
            sizes.add(len(json.dumps(state)))
    assert max(sizes) < 500
    assert max(sizes) - min(sizes) <= 64


@pytest.mark.parametrize("after", [3, "cursor", {"epoch": 1}, [None]])
def test_state_after_something_else_is_refused(daemon: FakeDaemon, after: object) -> None:
    with pytest.raises(errors.CursorError, match="give a batch of this dataset, or its cursor"):
        daemon.dataset().state_dict(after=after)  # type: ignore[arg-type]


# ---- loading -------------------------------------------------------------------------------------


def test_every_state_continues_the_run() -> None:
    with fake(11, SHUFFLED) as daemon:
        dataset = daemon.dataset()
        whole, states = Ledger(), [dataset.state_dict()]
        for _ in range(2):
            for batch in dataset:
                whole.record(batch)
                states.append(dataset.state_dict())
        for number, state in enumerate(states):
            resumed = daemon.dataset()
            resumed.load_state_dict(state)
            rest = Ledger()
            while len(rest.entries) < len(whole.entries) - number:
                for batch in resumed:
                    rest.record(batch)
            assert rest.entries == whole.entries[number:]


def test_loading_into_a_running_session_ends_its_pass(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    take(batches, 1)
    state = dataset.state_dict()
    take(batches, 3)
    dataset.load_state_dict(state)
    with pytest.raises(errors.FeedError, match="this pass was ended by a newer one, or by seek"):
        next(batches)
    assert stands(dataset) == (0, 1)
    assert places(dataset) == [(0, step) for step in range(1, 5)]


def test_loading_twice_is_loading_once(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    take(iter(dataset), 2)
    state = dataset.state_dict()
    other = {**state, "step": 4, "position": 8, "update": 4, "sample": 8}
    resumed = daemon.dataset()
    for loaded in (other, state, state):
        resumed.load_state_dict(loaded)
    assert resumed.state_dict() == state
    assert places(resumed) == [(0, 2), (0, 3), (0, 4)]


def test_two_iterators_after_a_load_do_not_lose_the_position(daemon: FakeDaemon) -> None:
    """StatefulDataLoader calls iter() twice when it restores."""
    dataset = daemon.dataset()
    take(iter(dataset), 2)
    resumed = daemon.dataset()
    resumed.load_state_dict(dataset.state_dict())
    iter(resumed)
    assert take(iter(resumed), 1) == [(0, 2)]


def test_the_pass_after_a_resumed_one_is_a_whole_epoch(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    take(iter(dataset), 4)
    resumed = daemon.dataset()
    resumed.load_state_dict(dataset.state_dict())
    assert places(resumed) == [(0, 4)]
    assert places(resumed) == [(1, step) for step in range(5)]
    assert len(daemon.opened) == 2


def test_resume_of_a_resume_ten_times() -> None:
    for seed in range(5):
        rng = random.Random(seed)
        with fake(60, Shuffled(batch_size=2, seed=seed)) as daemon:
            whole = ledger_of(daemon.dataset())
            pieces = Ledger()
            state: str | None = None
            for stop in [*sorted(rng.sample(range(1, 30), 9)), 30]:
                dataset = daemon.dataset(prefetch_batches=rng.choice((1, 4, 64)))
                if state is not None:
                    dataset.load_state_dict(json.loads(state))
                batches = iter(dataset)
                while len(pieces.entries) < stop:
                    pieces.record(next(batches))
                earlier, state = state, json.dumps(dataset.state_dict())
                assert earlier is None or abs(len(state) - len(earlier)) <= 64
            assert pieces.difference(whole) is None


def test_state_continues_on_another_world_size() -> None:
    with fake(24, Shuffled(global_batch_size=4, seed=5)) as daemon:
        whole = [set(batch.sample_keys) for batch in daemon.dataset(topology=Topology())]
        dataset = daemon.dataset(topology=Topology(0, 4))
        seen: list[set[str]] = []
        for world_size in (4, 1, 2):
            ranks = [
                daemon.dataset(topology=Topology(rank, world_size)) for rank in range(world_size)
            ]
            for rank in ranks:
                rank.load_state_dict(dataset.state_dict())
            passes = [iter(rank) for rank in ranks]
            for _ in range(2):
                step = [next(batches).sample_keys for batches in passes]
                seen.append(set().union(*step))
            dataset = ranks[-1]
    assert seen == whole


# ---- what is refused -----------------------------------------------------------------------------


def test_state_of_another_plan_is_refused_where_the_plan_is_known(daemon: FakeDaemon) -> None:
    state = daemon.dataset().state_dict()
    with fake(10, SHUFFLED) as other:
        dataset = other.dataset()
        with pytest.raises(errors.CursorError) as caught:
            dataset.load_state_dict(state)
        assert daemon.stream.plan.digest[:12] in str(caught.value)
        assert SHUFFLED.digest[:12] in str(caught.value)
        assert "Shuffled(batch_size=3, seed=17)" in str(caught.value)
        assert "seek()" in str(caught.value)
        assert stands(dataset) == (0, 0)
        assert len(list(dataset)) == 4, "a refused state changes nothing"


def test_state_of_another_plan_is_refused_by_the_daemon_where_it_is_not(
    daemon: FakeDaemon,
) -> None:
    state = daemon.dataset().state_dict()
    with fake(10, SHUFFLED) as other:
        dataset = DaemonDataset("/s", "train")
        dataset._link.dial = other._dial
        dataset.load_state_dict(state)
        for ask in (lambda: next(iter(dataset)), lambda: len(dataset), lambda: dataset.remaining):
            with pytest.raises(errors.CursorError, match="the cursor belongs to plan"):
                ask()


def test_state_of_other_data_is_refused(daemon: FakeDaemon) -> None:
    state = daemon.dataset().state_dict()
    with fake(11) as other:
        dataset = other.dataset()
        dataset.load_state_dict(state)
        with pytest.raises(errors.ManifestMismatchError) as caught:
            next(iter(dataset))
        assert daemon.manifest.digest[:12] in str(caught.value)
        assert other.manifest.digest[:12] in str(caught.value)
        assert "11 samples" in str(caught.value)
        dataset.seek(epoch=0)
        assert len(list(dataset)) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: None, "a state is a dict as state_dict.. returns it, not NoneType"),
        (lambda s: json.dumps(s), "not str"),
        (lambda s: [s], "not list"),
        (lambda s: {}, "the state is not a Headrace cursor: .*missing required field `plan`"),
        (lambda s: {**s, "format": FORMAT + 1}, f"the state has format {FORMAT + 1}, .*upgrade"),
        (lambda s: {**s, "plan_version": PLAN_VERSION + 1}, "plan version 2, .*upgrade"),
        (lambda s: {**s, "epoch": -1}, "epoch=-1"),
        (lambda s: {**s, "epoch": "0"}, "Expected `int`, got `str` - at `..epoch`"),
        (lambda s: {**s, "step": 1.5}, "step"),
        (lambda s: {**s, "world_size": 0}, "world_size=0"),
        (lambda s: {**s, "skips": [-3]}, "skips entry=-3"),
    ],
)
def test_what_is_no_state_is_refused(
    daemon: FakeDaemon, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    dataset = daemon.dataset()
    with pytest.raises(errors.CursorError, match=words):
        dataset.load_state_dict(change(dataset.state_dict()))
    assert len(list(dataset)) == 5, "a refused state changes nothing"


def test_state_may_be_in_another_order_with_more_keys(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    take(iter(dataset), 2)
    state = dict(reversed(dataset.state_dict().items()))
    resumed = daemon.dataset()
    resumed.load_state_dict({**state, "note": "written by somebody else"})
    assert places(resumed) == [(0, 2), (0, 3), (0, 4)]


def test_position_outside_of_the_epoch_is_refused(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    dataset.load_state_dict({**dataset.state_dict(), "position": 10, "step": 5})
    with pytest.raises(errors.CursorError, match=r"position=10 is outside 0\.\.9"):
        next(iter(dataset))


# ---- going elsewhere -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ({"epoch": 0}, (0, 0)),
        ({"epoch": 7}, (7, 0)),
        ({"update": 0}, (0, 0)),
        ({"update": 8}, (1, 3)),
        ({"update": 5}, (1, 0)),
        ({"sample": 4}, (0, 2)),
        ({"sample": 10}, (1, 0)),
        ({"sample": 10**9}, (10**8, 0)),
    ],
)
def test_seek_goes_anywhere(
    daemon: FakeDaemon, where: dict[str, int], place: tuple[int, int]
) -> None:
    dataset = daemon.dataset()
    dataset.seek(**where)
    assert stands(dataset) == place
    assert take(iter(dataset), 1) == [place]


def test_seek_ends_a_pass_in_progress(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    take(batches, 2)
    dataset.seek(epoch=3)
    with pytest.raises(errors.FeedError, match="this pass was ended"):
        next(batches)
    assert places(dataset) == [(3, step) for step in range(5)]
    assert places(dataset) == [(4, step) for step in range(5)]


def test_seek_skips_ahead_on_request(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    take(iter(dataset), 1)
    dataset.seek(update=dataset.state_dict()["update"] + 2)
    assert places(dataset) == [(0, 3), (0, 4)]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({}, "exactly one of epoch=, update=, sample=; got none"),
        ({"epoch": 1, "update": 2}, "exactly one of"),
        ({"epoch": -1}, "seek epoch=-1"),
        ({"epoch": 1.5}, r"seek epoch=1\.5"),
        ({"update": True}, "seek update=True"),
        ({"sample": 3}, "sample=3 is not the edge of a batch: the nearest are 2 and 4"),
        ({"sample": 2**70}, "seek sample="),
    ],
)
def test_seek_to_no_place_is_refused(daemon: FakeDaemon, where: dict[str, Any], words: str) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    take(batches, 2)
    with pytest.raises(errors.CursorError, match=words):
        dataset.seek(**where)
    assert take(batches, 1) == [(0, 2)], "a refused seek changes nothing"


# ---- set_epoch -----------------------------------------------------------------------------------


def test_set_epoch_in_the_habit_of_torch(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    seen = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        seen += places(dataset)
    assert seen == [(epoch, step) for epoch in range(3) for step in range(5)]
    assert len(daemon.opened) == 1, "set_epoch with the epoch that is due does nothing"


def test_set_epoch_of_the_loaded_epoch_keeps_the_position(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    dataset.seek(update=8)
    dataset.set_epoch(1)
    assert places(dataset) == [(1, 3), (1, 4)]


def test_set_epoch_goes_elsewhere_before_a_pass(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    dataset.set_epoch(4)
    assert places(dataset) == [(4, step) for step in range(5)]
    dataset.set_epoch(4)
    assert places(dataset) == [(4, step) for step in range(5)], "the same epoch once more"
    dataset.set_epoch(0)
    assert take(iter(dataset), 1) == [(0, 0)]


def test_set_epoch_within_a_pass_is_a_no_op_or_an_error(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = iter(dataset)
    take(batches, 2)
    dataset.set_epoch(0)
    for epoch in (1, 7):
        with pytest.raises(
            errors.CursorError, match=rf"set_epoch\({epoch}\) in the middle of epoch 0"
        ):
            dataset.set_epoch(epoch)
    assert take(batches, 3) == [(0, 2), (0, 3), (0, 4)]


def test_set_epoch_after_a_break(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    take(iter(dataset), 2)
    dataset.set_epoch(1)
    assert places(dataset) == [(1, step) for step in range(5)]


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", None, True])
def test_set_epoch_refuses_what_is_no_epoch(daemon: FakeDaemon, epoch: object) -> None:
    with pytest.raises(errors.CursorError):
        daemon.dataset().set_epoch(epoch)  # type: ignore[arg-type]


# ---- lengths -------------------------------------------------------------------------------------


def lengths(dataset: DaemonDataset) -> tuple[int, int]:
    return len(dataset), dataset.remaining


def test_lengths_at_every_moment(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    assert lengths(dataset) == (5, 5)
    batches = iter(dataset)
    assert lengths(dataset) == (5, 5)
    for left in (4, 3, 2, 1, 0):
        next(batches)
        assert lengths(dataset) == (5, left)
    assert next(batches, None) is None
    assert lengths(dataset) == (5, 5), "those of the next pass"


def test_lengths_after_a_break_are_those_of_the_next_pass(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    take(iter(dataset), 2)
    assert lengths(dataset) == (5, 5)


def test_lengths_after_a_load(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    dataset.seek(update=8)
    state = dataset.state_dict()
    resumed = daemon.dataset()
    resumed.load_state_dict(state)
    assert lengths(resumed) == (5, 2)
    batches = iter(resumed)
    next(batches)
    assert lengths(resumed) == (5, 1)
    next(batches)
    assert lengths(resumed) == (5, 0)
    assert next(batches, None) is None
    assert lengths(resumed) == (5, 5)


@pytest.mark.parametrize(
    ("tail", "world_size", "steps"),
    [("short", 1, 4), ("drop", 1, 3), ("wrap", 1, 4), ("short", 2, 2), ("drop", 2, 1)],
)
def test_lengths_know_the_tail_and_the_ranks(tail: Tail, world_size: int, steps: int) -> None:
    with fake(11, Sequential(batch_size=3, tail=tail)) as daemon:
        dataset = daemon.dataset(topology=Topology(world_size - 1, world_size))
        assert lengths(dataset) == (steps, steps)
        assert len(list(dataset)) == steps


def test_lengths_under_another_world_size_count_what_is_left() -> None:
    with fake(24, Sequential(global_batch_size=4)) as daemon:
        dataset = daemon.dataset()
        take(iter(dataset), 2)
        resumed = daemon.dataset(topology=Topology(1, 4))
        resumed.load_state_dict(dataset.state_dict())
        assert lengths(resumed) == (6, 4)
        assert len(list(resumed)) == 4


def test_lengths_of_a_plan_that_makes_no_step_are_refused() -> None:
    with fake(3, Sequential(batch_size=4, tail="drop")) as daemon:
        dataset = daemon.dataset()
        for ask in (lambda: len(dataset), lambda: dataset.remaining, lambda: next(iter(dataset))):
            with pytest.raises(errors.PlanError, match="tail='drop' leaves no step"):
                ask()


def test_cursors_are_public(daemon: FakeDaemon) -> None:
    batch = next(iter(daemon.dataset()))
    assert isinstance(batch.cursor, Cursor)
    assert batch.cursor == Cursor(
        plan=daemon.stream.plan.digest,
        manifest=daemon.manifest.digest,
        step=1,
        position=2,
        update=1,
        sample=2,
    )


def test_a_stream_without_a_daemon_refuses_a_foreign_state_all_the_same(
    daemon: FakeDaemon,
) -> None:
    state = daemon.dataset().state_dict()
    dataset = DaemonDataset("/no.sock", Stream(Objects("/data"), SHUFFLED))
    with pytest.raises(errors.CursorError, match="the cursor belongs to plan"):
        dataset.load_state_dict(state)
