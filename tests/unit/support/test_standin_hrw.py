"""Where objects belong, by numbers that were computed elsewhere and seen on a live cluster."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.support.standin import hrw


@dataclass(frozen=True)
class Node:
    digest: int


TARGETS = {name: Node(hrw.digest(name)) for name in ("t1", "t2", "t3")}


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("ais/@#/bck/obj", 7636710260493408699),
        ("ais/@#/train/shard-000000.tar", 4208256893721277931),
        ("aws/@#/imgs/a/b.jpg", 1347347912157273284),
        ("ais/@#ns1/train/x", 14439148799234947174),
        ("t1", 14214570646889990061),
        ("t2", 17780131176456335389),
        ("t3", 7900451649967436292),
    ],
)
def test_digests_are_those_of_aistore(text: str, digest: int) -> None:
    assert hrw.digest(text) == digest


def test_weights_are_those_of_aistore() -> None:
    assert hrw.weight(0) == 1905207664160064169
    assert hrw.weight(4573842) == 5026071747115404967
    name = hrw.digest("ais/@#/bck/obj")
    assert [hrw.weight(target.digest ^ name) for target in TARGETS.values()] == [
        1545992387071567402,
        6588427082116747545,
        9780009211953899026,
    ]


@pytest.mark.parametrize(
    "name", ["ais/@#/bck/obj", "ais/@#/train/shard-000000.tar", "aws/@#/imgs/a/b.jpg"]
)
def test_the_owner_has_the_largest_weight(name: str) -> None:
    assert hrw.owner(name, TARGETS.values()) is TARGETS["t3"]


def test_a_target_that_leaves_moves_its_own_objects_only() -> None:
    names = [f"ais/@#/b/{index}" for index in range(300)]
    rest = [TARGETS["t1"], TARGETS["t2"]]
    for name in names:
        owner = hrw.owner(name, TARGETS.values())
        if owner is not TARGETS["t3"]:
            assert hrw.owner(name, rest) is owner
