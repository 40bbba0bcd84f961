from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Shards, Stream
from headrace.errors import NoStepError, PlanError
from headrace.plans import Data, Sequential, Slice
from headrace.plans.engine import BoundPlan, epoch_steps, next_batches
from headrace.plans.order import RunOrder
from headrace.plans.shardslice import shard_slice
from headrace.topology import Topology


def data_of(sizes: list[int]) -> Data:
    return Data(sum(sizes), shards=np.array([0, *np.cumsum(sizes)], dtype=np.uint64))


def delivered(sizes: list[int], chosen: Slice, **options: int) -> list[int]:
    """Return the samples of an epoch; nothing if it has none."""
    plan = Sequential(batch_size=options.pop("batch_size", 2), shards=chosen)
    try:
        bound = BoundPlan.to(plan, data_of(sizes))
        steps = epoch_steps(bound, 1)
    except NoStepError:
        return []
    cursor, found = bound.start(), []
    for _ in range(steps):
        (batch,) = next_batches(bound, cursor, Topology(), max_batches=1)
        found += batch.indices.tolist()
        cursor = batch.after
    assert cursor.epoch == 1
    return found


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(any),
    every=st.integers(1, 10),
    batch_size=st.integers(1, 7),
)
def test_shares_have_whole_shards_and_are_the_whole(
    sizes: list[int], every: int, batch_size: int
) -> None:
    ends = np.cumsum(sizes).tolist()
    shards = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    shares = [delivered(sizes, Slice(n, None, every), batch_size=batch_size) for n in range(every)]
    for number, share in enumerate(shares):
        assert share == [sample for shard in shards[number::every] for sample in shard]
        order = shard_slice(Slice(number, None, every), data_of(sizes))
        assert isinstance(order, RunOrder)
        found = order.samples_at(0, 0, order.length)
        assert found.tolist() == share
        assert order.places_of(0, found).tolist() == list(range(order.length))


def test_a_slice_may_end_anywhere_among_the_shards() -> None:
    assert delivered([2, 3, 1, 2], Slice(1, 3)) == [2, 3, 4, 5]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match="shards stop=3 is out of range: the data has 2"):
        delivered([1, 1], Slice(0, 3))
    with pytest.raises(PlanError, match=r"shards=Slice\(\) does not go with a source without shar"):
        BoundPlan.to(Sequential(batch_size=1, shards=Slice()), Data(4))
    streamed = Shards("/data", fields=["jpg"], index=False)
    with pytest.raises(PlanError, match=r"shards=Slice\(\) has to know all samples beforehand"):
        Stream(streamed, Sequential(batch_size=1, shards=Slice()))
    with pytest.raises(PlanError, match=r"subset=\(0,\) does not go with shards=Slice\(\), whose"):
        Sequential(batch_size=1, shards=Slice(), subset=(0,))


def test_a_plan_without_it_keeps_its_digest() -> None:
    assert "shards" not in Sequential(batch_size=1).canonical()
