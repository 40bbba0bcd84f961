"""Ranks compare what they are about to read: all come to the same conclusion, or to a deadline."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from headrace import errors
from headrace.ranks import Facts, Meeting, compare, meeting, stay_away

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FACTS = Facts(
    stream="Shuffled over /data",
    world_size=3,
    plan="p" * 64,
    manifest="m" * 64,
    length=640,
    epoch=1,
    step=2,
    position=24,
)
BLOCKS = [f"{number:016x}" for number in range(64)]
MEMBERS = (0, 2, 5)


def meet(
    facts: dict[int, Facts],
    blocks: Mapping[int, Sequence[str]] | None = None,
    deadline_s: float = 20.0,
) -> list[Exception | None]:
    """Let ranks compare, each in a thread, and return what each of them raised."""
    store = HashStore()
    raised: dict[int, Exception | None] = {}

    def compare_as(rank: int) -> None:
        try:
            own = (blocks or {}).get(rank, BLOCKS)
            compare(Meeting(store, rank, MEMBERS, 0), facts[rank], own, deadline_s=deadline_s)
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            raised[rank] = error
        else:
            raised[rank] = None

    threads = [threading.Thread(target=compare_as, args=(rank,)) for rank in facts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [raised[rank] for rank in facts]


def test_ranks_that_agree_go_on() -> None:
    assert meet(dict.fromkeys(MEMBERS, FACTS)) == [None] * 3


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (
            {"plan": "q" * 64, "stream": "other"},
            errors.PlanError,
            "rank 0 has pppppppppppp… (Shuffled over /data), rank 5 has qqqqqqqqqqqq… (other)",
        ),
        (
            {"manifest": "n" * 64, "length": 641},
            errors.ManifestMismatchError,
            "manifest mmmmmmmmmmmm… of 640 samples, rank 5 has nnnnnnnnnnnn… of 641 samples:",
        ),
        (
            {"manifest": "n" * 64},
            errors.ManifestMismatchError,
            "nnnnnnnnnnnn… of 640 samples, which differ first in the samples 70 to 79: let",
        ),
        (
            {"world_size": 4},
            errors.TopologyError,
            "ranks count differently: rank 0 is one of 3, rank 5 one of 4",
        ),
        (
            {"step": 3, "position": 36},
            errors.CursorError,
            "rank 0 at epoch 1 step 2 (sample 24 of its order), rank 5 at epoch 1 step 3 (sample "
            "36 of its order)",
        ),
    ],
)
def test_a_difference_is_shown_to_all_ranks_alike(
    change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    other = msgspec.structs.replace(FACTS, **change)
    blocks = {5: [*BLOCKS[:7], "0" * 16, *BLOCKS[8:]]}
    raised = meet({0: FACTS, 2: FACTS, 5: other}, blocks)
    assert [type(error) for error in raised] == [kind] * 3
    assert {str(error) for error in raised} == {str(raised[0])}
    assert words in str(raised[0])


def test_a_rank_that_does_not_come_is_named_at_the_deadline() -> None:
    raised = meet({0: FACTS}, deadline_s=0.05)
    assert isinstance(raised[0], errors.TopologyError)
    assert "rank(s) 2, 5 did not begin a pass over a DaemonDataset within 0.05 s" in str(raised[0])


def test_a_rank_that_cannot_begin_lets_nobody_wait() -> None:
    store = HashStore()
    stay_away(Meeting(store, 2, MEMBERS, 0), "no memory")
    stay_away(Meeting(store, 5, MEMBERS, 0), "no daemon")
    with pytest.raises(errors.FeedError, match="rank 2 cannot begin its pass: no memory") as raised:
        compare(Meeting(store, 0, MEMBERS, 0), FACTS, BLOCKS, deadline_s=0.05)
    assert (raised.value.code, raised.value.retryable) == ("ranks", False)


def test_a_lone_process_meets_nobody() -> None:
    assert meeting() is None
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert meeting() is None
    finally:
        dist.destroy_process_group()
