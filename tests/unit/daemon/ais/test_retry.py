"""Tries under one deadline."""

from __future__ import annotations

import random

import pytest

from headrace_daemon.source.ais.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, Retry
from tests.support.loops import run


class Time:
    def __init__(self) -> None:
        self.now = 50.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def tries(deadline_s: float, seed: int = 0) -> tuple[Retry, Time]:
    time = Time()
    retry = Retry(deadline_s, sleep=time.sleep, clock=time, rng=random.Random(seed))

    async def main() -> None:
        while await retry.pause():
            pass

    run(main())
    return retry, time


def test_pauses_grow_to_a_limit_and_end_at_the_deadline() -> None:
    retry, time = tries(60.0)
    limit = FIRST_PAUSE_S
    for pause in time.pauses[:-1]:
        assert limit / 4 <= pause <= limit
        limit = min(2 * limit, LONGEST_PAUSE_S)
    assert sum(time.pauses) == pytest.approx(60.0), "the last one is cut"
    assert retry.num_tries == len(time.pauses)


def test_pauses_differ_from_one_who_failed_to_the_next() -> None:
    assert tries(10.0, 1)[1].pauses != tries(10.0, 2)[1].pauses


def test_a_try_without_a_pause_counts_and_knows_the_deadline() -> None:
    time = Time()
    retry = Retry(1.0, sleep=time.sleep, clock=time)
    assert retry.again()
    assert retry.num_tries == 2
    time.now += 1.0
    assert retry.left_s == 0.0
    assert not retry.again()
    assert retry.num_tries == 2


def test_an_end_is_explained_with_the_tries_and_the_limit() -> None:
    retry = Retry(300.0)
    assert retry.explain() == "tried once within 300 s ([store] deadline_s)"
    assert retry.again()
    assert retry.explain() == "tried 2 times within 300 s ([store] deadline_s)"


def test_the_first_try_is_part_of_the_time() -> None:
    time = Time()
    assert Retry(10.0, spent_s=4.0, clock=time).left_s == 6.0
    spent = Retry(10.0, spent_s=11.0, clock=time)
    assert not spent.again()
    assert spent.num_tries == 1
