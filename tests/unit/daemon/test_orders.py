"""Long orders come from a process of their own, are right, and leave nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

from headrace.errors import FeedError
from headrace.plans import Chain, Data, Shuffled, VariableBatch
from headrace.plans.engine import BoundPlan, next_batches
from headrace.plans.exact import MAX_EXACT, Recipe
from headrace.topology import Topology
from headrace_daemon.feed.bound import MAX_KEPT, BoundPlans
from headrace_daemon.feed.orders import MIN_ELSEWHERE, OrderMaker
from tests.support.reading import ReadyReader, source_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.manifest import Manifest
    from headrace.plans import Plan

LENGTH = MIN_ELSEWHERE + 1


@pytest.fixture
def maker() -> Iterator[OrderMaker]:
    before = descriptors()
    maker = OrderMaker()
    yield maker
    maker.close()
    wait_until(lambda: not children())
    assert descriptors() == before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "headrace_daemon.feed.orders" in child.cmdline()
    ]


def test_orders_are_those_of_torch_and_python(maker: OrderMaker) -> None:
    made = maker.make(Recipe("torch", LENGTH, 3), 2)
    expected = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(5))
    assert made.permutation.tolist() == expected.tolist()
    assert not made.permutation.flags.writeable
    made = maker.make(Recipe("python", LENGTH, 3), 2)
    generator, order = random.Random(5), list(range(LENGTH))
    generator.shuffle(order)
    assert made.permutation.tolist() == order
    again = random.Random()
    again.setstate(made.state)
    assert again.random() == generator.random()


def test_an_order_that_is_kept_holds_no_descriptor(maker: OrderMaker) -> None:
    before = descriptors()
    made = maker.make(Recipe("torch", LENGTH, 3), 2)
    assert descriptors() == before
    assert len(made.permutation) == LENGTH


def test_a_plan_uses_it_from_a_length_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Recipe, int]] = []

    class Noting(OrderMaker):
        def make(self, recipe: Recipe, epoch: int) -> Any:  # noqa: ANN401 - as in OrderMaker
            made.append((recipe, epoch))
            return recipe.make(epoch)

    maker = Noting()
    plans = BoundPlans(maker)
    scaled = VariableBatch(batch_size=7, order="python", chooser="cvnets", seed=4)
    for plan in (
        Shuffled(batch_size=7, order="torch", seed=1),
        scaled,
        Chain(
            plans={"a": scaled, "b": Shuffled(batch_size=9, order="torch-continued")},
            mode="interleave",
        ),
    ):
        here = BoundPlan.to(plan, Data(LENGTH, "m"))
        there = plans.bind(plan, {"": manifest(LENGTH)})
        for bound in (here, there):
            batches = next_batches(bound, bound.start(), Topology(1, 2), max_batches=20)
            if bound is here:
                expected = [(b.indices.tolist(), dict(b.meta)) for b in batches]
        assert [(b.indices.tolist(), dict(b.meta)) for b in batches] == expected
    assert [recipe.kind for recipe, _ in made] == ["torch", "python", "python", "torch-continued"]
    made.clear()
    small = plans.bind(Shuffled(batch_size=7, order="torch"), {"": manifest(MIN_ELSEWHERE - 1)})
    next_batches(small, small.start(), Topology(), max_batches=1)
    assert made == []


def manifest(length: int) -> Manifest:
    return source_of([1] * length, ReadyReader()).manifest


def test_a_failure_is_told_with_what_the_process_says(
    maker: OrderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FeedError, match=r"of 9 samples could not be made \(AssertionError: no\)"):
        maker.make(Recipe("no", 9, 3), 2)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(FeedError, match=r"could not be made .*/no/python"):
        maker.make(Recipe("torch", 9, 3), 2)


def test_the_end_of_the_daemon_ends_what_is_made() -> None:
    maker, failures = OrderMaker(), []

    def make() -> None:
        try:
            maker.make(Recipe("torch", MAX_EXACT, 3), 2)
        except FeedError as error:
            failures.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    wait_until(lambda: len(children()) == 1)
    maker.close()
    thread.join(30)
    assert [error.retryable for error in failures] == [True]
    assert children() == []
    with pytest.raises(FeedError, match="the daemon is stopping"):
        maker.make(Recipe("torch", 9, 3), 2)


def test_a_process_ends_with_the_daemon_however_that_ends() -> None:
    script = (
        "from headrace_daemon.feed.orders import OrderMaker\n"
        "from headrace.plans.exact import MAX_EXACT, Recipe\n"
        "OrderMaker().make(Recipe('torch', MAX_EXACT, 1), 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as daemon:
        started = psutil.Process(daemon.pid)
        wait_until(started.children)
        (child,) = started.children()
        daemon.send_signal(signal.SIGKILL)
    child.wait(10)


def test_plans_are_shared_and_only_so_many_are_kept() -> None:
    plans = BoundPlans(OrderMaker())
    data = {"": manifest(20)}

    def bind(plan: Plan) -> BoundPlan:
        return plans.bind(plan, data)

    first = bind(Shuffled(batch_size=3, seed=1))
    assert bind(Shuffled(batch_size=3, seed=1)) is first
    assert bind(Shuffled(batch_size=3, seed=2)) is not first
    assert plans.bind(Shuffled(batch_size=3, seed=1), {"": manifest(21)}) is not first
    for seed in range(MAX_KEPT):
        bind(Shuffled(batch_size=3, seed=100 + seed))
    assert bind(Shuffled(batch_size=3, seed=1)) is not first
    assert len(plans._kept) == MAX_KEPT
