from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.plans.order import KeyedOrder, Order, SequentialOrder, round_keys
from tests.support import keyed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from headrace.plans.order import Indices

GOLDEN: list[dict[str, Any]] = json.loads(keyed.GOLDEN.read_text(encoding="utf-8"))


def whole(order: Order, epoch: int = 0) -> Indices:
    return order.at(epoch, np.arange(order.length, dtype=np.uint64))


def case_id(record: dict[str, Any]) -> str:
    return "-".join(f"{name}{record[name]}" for name in ("n", "seed", "epoch"))


# --- Every order ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [SequentialOrder(100), KeyedOrder(100, 3)], ids=["sequential", "keyed"]
)
def test_an_order_returns_a_new_array_and_leaves_the_positions_alone(order: Order) -> None:
    positions = np.array([7, 3, 3, 99, 0], dtype=np.uint64)
    positions.flags.writeable = False
    entries = order.at(0, positions)
    assert entries.dtype == np.uint64
    assert not np.shares_memory(entries, positions)
    assert positions.tolist() == [7, 3, 3, 99, 0]


@pytest.mark.parametrize(
    "order", [SequentialOrder(100), KeyedOrder(100, 3)], ids=["sequential", "keyed"]
)
def test_no_positions_have_no_entries(order: Order) -> None:
    assert order.at(0, np.array([], dtype=np.uint64)).tolist() == []


def test_sequential_order_is_that_of_the_manifest_in_each_epoch() -> None:
    order = SequentialOrder(5)
    assert whole(order, 0).tolist() == [0, 1, 2, 3, 4]
    assert whole(order, 9).tolist() == [0, 1, 2, 3, 4]


# --- Keyed: a permutation -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 1000, 2**20 + 7])
def test_keyed_order_has_every_sample_once(n: int) -> None:
    order = KeyedOrder(n, seed=17)
    for epoch in range(2):
        entries = whole(order, epoch)
        assert np.array_equal(np.bincount(entries.astype(np.int64), minlength=n), np.ones(n))


@given(n=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**63 - 1))
@example(n=256, seed=0, epoch=0)
@example(n=257, seed=0, epoch=0)
def test_keyed_order_has_every_sample_once_for_any_key(n: int, seed: int, epoch: int) -> None:
    assert sorted(whole(KeyedOrder(n, seed), epoch).tolist()) == list(range(n))


@pytest.mark.parametrize("n", [10**9, 2**63 - 1])
def test_keyed_order_of_a_billion_repeats_none_of_100_000_samples(n: int) -> None:
    drawn = np.random.default_rng(0).integers(0, n, size=100_000, dtype=np.uint64)
    edges = np.array([0, 1, 2, n - 2, n - 1], dtype=np.uint64)
    positions = np.unique(np.concatenate([drawn, edges]))
    entries = KeyedOrder(n, seed=17).at(3, positions)
    assert len(np.unique(entries)) == len(positions)
    assert int(entries.max()) < n


@given(data=st.data(), n=st.integers(1, 10**12))
def test_any_position_is_reached_alone(data: st.DataObject, n: int) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    order = KeyedOrder(n, seed=5)
    together = order.at(1, np.array(positions, dtype=np.uint64)).tolist()
    alone = [int(order.at(1, np.array([at], dtype=np.uint64))[0]) for at in positions]
    assert together == alone


def test_epochs_seeds_roles_and_repeats_have_different_orders() -> None:
    orders = [
        whole(KeyedOrder(100, seed, role=role, repeat=repeat), epoch).tolist()
        for seed, role, repeat, epoch in [
            *((0, 0, 0, epoch) for epoch in range(50)),
            *((seed, 0, 0, 0) for seed in (1, 2, 17, 2**32, 2**63, 2**64 - 1)),
            (0, 1, 0, 0),
            (0, 2, 0, 0),
            (0, 0, 1, 0),
            (0, 0, 2, 0),
        ]
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_seed_and_epoch_are_not_added_up() -> None:
    assert whole(KeyedOrder(100, seed=1), epoch=0).tolist() != whole(KeyedOrder(100, 0), 1).tolist()


def test_round_keys_are_all_different() -> None:
    keys = np.concatenate([round_keys(seed, epoch) for seed in range(20) for epoch in range(20)])
    assert len(np.unique(keys)) == len(keys) == 400 * keyed.NUM_ROUNDS


# --- Keyed: the literal order ---------------------------------------------------------------------


@pytest.mark.parametrize("record", GOLDEN, ids=case_id)
def test_keyed_order_is_the_golden_one(record: dict[str, Any]) -> None:
    n = record["n"]
    order = KeyedOrder(
        n, record["seed"], role=record.get("role", 0), repeat=record.get("repeat", 0)
    )
    shown = len(record["first"])
    first = np.arange(shown, dtype=np.uint64)
    assert order.at(record["epoch"], first).tolist() == record["first"]
    last = first + np.uint64(n - shown)
    assert order.at(record["epoch"], last).tolist() == record["last"]
    if "crc32" in record:
        content = whole(order, record["epoch"]).astype("<u8").tobytes()
        assert f"{zlib.crc32(content):08x}" == record["crc32"]


def test_golden_orders_are_those_of_the_plain_implementation() -> None:
    quick = [case for case in keyed.CASES if not 1000 < case["n"] < keyed.WHOLE_UP_TO]
    golden = [record for record in GOLDEN if not 1000 < record["n"] < keyed.WHOLE_UP_TO]
    assert [keyed.record(case) for case in quick] == golden


@given(
    n=st.integers(1, 70),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**63 - 1),
    role=st.integers(0, 3),
    repeat=st.integers(0, 3),
)
def test_short_keyed_orders_equal_the_plain_implementation(
    n: int, seed: int, epoch: int, role: int, repeat: int
) -> None:
    order = KeyedOrder(n, seed, role=role, repeat=repeat)
    expected = keyed.whole(n=n, seed=seed, epoch=epoch, role=role, repeat=repeat)
    assert whole(order, epoch).tolist() == expected


@given(data=st.data(), n=st.integers(1, 2**63 - 1), seed=st.integers(0, 2**64 - 1))
def test_long_keyed_orders_equal_the_plain_implementation(
    data: st.DataObject, n: int, seed: int
) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    entries = KeyedOrder(n, seed).at(2, np.array(positions, dtype=np.uint64)).tolist()
    assert entries == [keyed.entry(at, n=n, seed=seed, epoch=2) for at in positions]


# --- Keyed: it looks random -----------------------------------------------------------------------
#
# `oddities` compares the epochs of an order with epochs of a true shuffle.  Each property is a
# number per epoch (or per two successive epochs); the means of both samples are compared by
# Welch's z.  With 64 epochs against 256 the means are near enough to normal for |z| < 5 to be
# passed by a true shuffle all but about once in a million; an order that is off fails by far.
# All seeds are fixed: the verdict on a given order is always the same.

NUM_EPOCHS = 64
NUM_REFERENCE = 256
Z_LIMIT = 5.0
LENGTHS = [60, 1000, 4096, 10_007]


class Affine:
    """What must be rejected: ``(i * a + b) mod n`` with a new `a` and `b` in each epoch."""

    def __init__(self, length: int) -> None:
        self.length = length

    def at(self, epoch: int, positions: Indices) -> Indices:
        rng = np.random.default_rng([self.length, epoch])
        a, b = (int(number) for number in rng.integers(self.length // 3, self.length, size=2))
        while math.gcd(a, self.length) > 1:
            a += 1
        return (positions * np.uint64(a) + np.uint64(b)) % np.uint64(self.length)


class Frozen:
    """What must be rejected: one good shuffle, the same in all epochs."""

    def __init__(self, length: int) -> None:
        self.length = length

    def at(self, epoch: int, positions: Indices) -> Indices:
        return KeyedOrder(self.length, 1).at(0, positions)


class Rotated:
    """What must be rejected: one good shuffle that each epoch begins elsewhere."""

    def __init__(self, length: int) -> None:
        self.length = length

    def at(self, epoch: int, positions: Indices) -> Indices:
        shift = np.uint64(epoch * self.length // 7)
        return KeyedOrder(self.length, 1).at(0, (positions + shift) % np.uint64(self.length))


class Blocky:
    """What must be rejected: blocks in random order, in order inside (a shuffle of shards)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def at(self, epoch: int, positions: Indices) -> Indices:
        sizes = np.array_split(np.arange(self.length, dtype=np.uint64), 15)
        blocks = np.random.default_rng([3, epoch]).permutation(15)
        return np.concatenate([sizes[block] for block in blocks])[positions.astype(np.int64)]


def oddities(order: Order) -> list[str]:
    """Return in what an order differs from a true shuffle: nothing, if it looks random."""
    reference = properties_of_a_shuffle(order.length)
    found = properties([whole(order, epoch).astype(np.int64) for epoch in range(NUM_EPOCHS)])
    odd = []
    for name, values in found.items():
        error = math.hypot(
            values.std(ddof=1) / math.sqrt(len(values)),
            reference[name].std(ddof=1) / math.sqrt(len(reference[name])),
        )
        z = float(values.mean() - reference[name].mean()) / error
        if abs(z) >= Z_LIMIT:
            odd.append(f"{name}: z={z:.1f}")
    return odd


@cache
def properties_of_a_shuffle(n: int) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(20_000 + n)
    return properties([rng.permutation(n) for _ in range(NUM_REFERENCE)])


def properties(orders: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.float64]]:
    """Return, by name, one number per epoch or per two successive epochs."""
    n = len(orders[0])
    places = np.arange(n)
    lists: dict[str, list[float]] = {}

    def note(name: str, value: float | np.number) -> None:
        lists.setdefault(name, []).append(float(value))

    for order in orders:
        steps = np.diff(order)
        fixed = int(np.count_nonzero(order == places))
        note("fixed points", fixed)
        note("fixed points, squared", fixed**2)
        note("neighbours that stay neighbours", np.count_nonzero(np.abs(steps) == 1))
        note("adjacent differences, evenness", unevenness(steps % n, n))
        note("adjacent differences, repeats", most_frequent(steps % n))
        note("adjacent differences, size", float(np.abs(steps).mean()) / n)
        note("ascents", np.count_nonzero(steps > 0) / n)
        note("turning points", np.count_nonzero(np.diff(np.sign(steps))) / n)
        note_correlation(note, "position and value", places, order)
        note_correlation(note, "entry and next entry", order[:-1], order[1:])
        pairs = order[:-1] * 8 // n * 8 + order[1:] * 8 // n
        note("entry and next entry, evenness", unevenness(pairs, 64))
        note("position and value, evenness", unevenness(places * 8 // n * 8 + order * 8 // n, 64))
    for before, after in pairwise(orders):
        note("samples that keep their place", np.count_nonzero(before == after))
        note("epoch to epoch differences, evenness", unevenness((after - before) % n, n))
        note("epoch to epoch differences, repeats", most_frequent((after - before) % n))
        note_correlation(note, "epoch and next epoch", before, after)
        # The place of a sample's successor of the last epoch: a rotation keeps them all.
        places_after = np.empty(n, dtype=np.int64)
        places_after[after] = places
        gaps = np.diff(places_after[before]) % n
        note("successors that stay successors", np.count_nonzero(gaps == 1))
    return {name: np.array(values, dtype=np.float64) for name, values in lists.items()}


def note_correlation(
    note: Callable[[str, float], None],
    name: str,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
) -> None:
    coefficient = float(np.corrcoef(left, right)[0, 1])
    note(f"{name}, correlation", coefficient)
    note(f"{name}, strength of correlation", abs(coefficient))


def unevenness(values: NDArray[np.int64], n: int) -> float:
    """Return the chi-square of values in [0, n) over at most 64 equal bins."""
    counts = np.bincount(values * min(n, 64) // n, minlength=min(n, 64))
    expected = len(values) / len(counts)
    return float(((counts - expected) ** 2).sum() / expected)


def most_frequent(values: NDArray[np.int64]) -> int:
    return int(np.bincount(values).max())


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("seed", [0, 17])
def test_keyed_order_looks_random(n: int, seed: int) -> None:
    assert oddities(KeyedOrder(n, seed)) == []


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("impostor", [Affine, Frozen, Rotated, Blocky])
def test_an_impostor_does_not_look_random(
    n: int, impostor: type[Affine | Frozen | Rotated | Blocky]
) -> None:
    order = impostor(n)
    assert sorted(whole(order).tolist()) == list(range(n))
    assert oddities(order) != []


def test_even_adjacent_differences_alone_reject_an_affine_order() -> None:
    assert any(odd.startswith("adjacent differences, repeats") for odd in oddities(Affine(1000)))


def test_seeds_look_as_independent_as_epochs() -> None:
    class BySeed:
        length = 1000

        def at(self, epoch: int, positions: Indices) -> Indices:
            return KeyedOrder(self.length, seed=epoch).at(0, positions)

    assert oddities(BySeed()) == []


def permutations_are_even(orders: Sequence[Sequence[int]]) -> bool:
    """Tell whether all n! permutations occur, and equally often for what chance allows.

    Chi-square, turned into a normal z by the cube root (E. Wilson and M. Hilferty, 1931); z < 4
    is passed by a true shuffle all but about once in 30,000.
    """
    counts = Counter(map(tuple, orders))
    num_possible = math.factorial(len(orders[0]))
    expected = len(orders) / num_possible
    missing = num_possible - len(counts)
    chi_square = sum((count - expected) ** 2 for count in counts.values()) / expected
    chi_square += missing * expected
    variance = 2 / (9 * (num_possible - 1))
    z = ((chi_square / (num_possible - 1)) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)
    return not missing and z < 4


@pytest.mark.parametrize(
    ("n", "num_seeds"),
    [(2, 200), (3, 600), (4, 1200), (5, 2400), pytest.param(6, 10_080, marks=pytest.mark.slow)],
)
def test_few_samples_come_in_all_orders_equally_often(n: int, num_seeds: int) -> None:
    assert permutations_are_even([whole(KeyedOrder(n, seed)).tolist() for seed in range(num_seeds)])


def test_few_samples_come_in_all_orders_over_epochs() -> None:
    order = KeyedOrder(5, seed=17)
    assert permutations_are_even([whole(order, epoch).tolist() for epoch in range(1200)])


def test_few_samples_of_a_true_shuffle_come_in_all_orders_equally_often() -> None:
    rng = np.random.default_rng(0)
    assert permutations_are_even([rng.permutation(5).tolist() for _ in range(2400)])


@pytest.mark.parametrize("n", [5, 6])
def test_few_samples_of_an_affine_order_do_not(n: int) -> None:
    order = Affine(n)
    assert not permutations_are_even([whole(order, epoch).tolist() for epoch in range(2400)])
