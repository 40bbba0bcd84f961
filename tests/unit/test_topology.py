from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace.errors import PlanError, TopologyError
from headrace.topology import Siblings, Topology, check_sources, resolve, siblings

if TYPE_CHECKING:
    from collections.abc import Mapping


def fake_group(
    monkeypatch: pytest.MonkeyPatch,
    rank: int = 0,
    world_size: int = 1,
    *,
    is_available: bool = True,
    is_initialized: bool = True,
) -> None:
    group = SimpleNamespace(
        is_available=lambda: is_available,
        is_initialized=lambda: is_initialized,
        get_rank=lambda group=None: rank,
        get_world_size=lambda group=None: world_size,
    )
    monkeypatch.setitem(sys.modules, "torch.distributed", group)


@pytest.fixture(autouse=True)
def _no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)


# --- The value ------------------------------------------------------------------------------------


def test_a_lone_process_is_rank_0_of_1() -> None:
    assert Topology() == Topology(rank=0, world_size=1)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (7, 8), (2**31 - 2, 2**31 - 1)])
def test_ranks_below_the_world_size_are_fine(rank: int, world_size: int) -> None:
    topology = Topology(rank, world_size)
    assert msgspec.json.decode(msgspec.json.encode(topology), type=Topology) == topology


@pytest.mark.parametrize("rank", [8, 9, -1, 1.0, True, "1"])
def test_a_rank_out_of_range_is_named_with_value_and_range(rank: Any) -> None:  # noqa: ANN401
    with pytest.raises(TopologyError) as refused:
        Topology(rank, 8)
    assert str(refused.value) == (f"rank={rank!r} is out of range: it must be an integer in 0..7")


@pytest.mark.parametrize("world_size", [0, -1, 2**31, 8.0, False])
def test_a_world_size_out_of_range_is_named_with_value_and_range(world_size: Any) -> None:  # noqa: ANN401
    with pytest.raises(TopologyError) as refused:
        Topology(0, world_size)
    assert str(refused.value) == (
        f"world_size={world_size!r} is out of range: it must be an integer in 1..{2**31 - 1}"
    )


# --- Where it comes from --------------------------------------------------------------------------


def test_without_any_hint_the_process_is_alone() -> None:
    assert resolve(environ={}) == Topology()


def test_torchruns_variables_are_read() -> None:
    assert resolve(environ={"RANK": "3", "WORLD_SIZE": "8", "HOME": "/"}) == Topology(3, 8)


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve() == Topology(1, 2)


def test_empty_variables_count_as_unset() -> None:
    assert resolve(environ={"RANK": "", "WORLD_SIZE": ""}) == Topology()


def test_an_explicit_topology_wins_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_group(monkeypatch, 1, 4)
    assert resolve(Topology(2, 3), {"RANK": "x", "WORLD_SIZE": "9"}) == Topology(2, 3)


def test_a_process_group_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_group(monkeypatch, 5, 6)
    assert resolve(environ={}) == Topology(5, 6)


def test_a_process_group_and_an_environment_that_agree_are_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_group(monkeypatch, 1, 4)
    assert resolve(environ={"RANK": "1", "WORLD_SIZE": "4"}) == Topology(1, 4)


@pytest.mark.parametrize(
    "environ", [{"RANK": "0", "WORLD_SIZE": "4"}, {"RANK": "1", "WORLD_SIZE": "8"}]
)
def test_a_process_group_and_an_environment_that_disagree_are_both_shown(
    monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str]
) -> None:
    fake_group(monkeypatch, 1, 4)
    with pytest.raises(TopologyError) as refused:
        resolve(environ=environ)
    text = str(refused.value)
    assert "torch.distributed says rank 1 of 4" in text
    assert f"RANK={environ['RANK']} WORLD_SIZE={environ['WORLD_SIZE']}" in text
    assert "pass topology=Topology(rank, world_size)" in text


@pytest.mark.parametrize("state", ["is_available", "is_initialized"])
def test_a_process_group_that_is_not_up_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    fake_group(monkeypatch, 5, 6, **{state: False})
    assert resolve(environ={"RANK": "1", "WORLD_SIZE": "2"}) == Topology(1, 2)


@pytest.mark.parametrize(("given", "missing"), [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")])
def test_one_variable_alone_is_refused_and_the_other_named(given: str, missing: str) -> None:
    with pytest.raises(TopologyError, match=f"has {given}=3 but no {missing}: set both"):
        resolve(environ={given: "3"})


@pytest.mark.parametrize("texts", [("one", "2"), ("0", "2.0")])
def test_variables_that_are_no_integers_are_shown(texts: tuple[str, str]) -> None:
    rank, world_size = texts
    with pytest.raises(TopologyError) as refused:
        resolve(environ={"RANK": rank, "WORLD_SIZE": world_size})
    assert f"RANK={rank!r} WORLD_SIZE={world_size!r}" in str(refused.value)
    assert "must be integers" in str(refused.value)


def test_variables_out_of_range_are_refused() -> None:
    with pytest.raises(TopologyError, match=r"rank=8 is out of range: .* 0\.\.7"):
        resolve(environ={"RANK": "8", "WORLD_SIZE": "8"})


# --- The ranks of a node --------------------------------------------------------------------------


def test_torchrun_says_who_else_is_on_the_node() -> None:
    environ = {
        "LOCAL_WORLD_SIZE": "4",
        "TORCHELASTIC_RUN_ID": "job",
        "TORCHELASTIC_RESTART_COUNT": "1",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29500",
    }
    assert siblings(environ) == Siblings("job/1/node0/29500", 4)
    assert siblings({}) == Siblings("", 1)


def test_a_number_of_ranks_that_is_none_is_named() -> None:
    with pytest.raises(TopologyError, match="LOCAL_WORLD_SIZE='four': it must be an integer"):
        siblings({"LOCAL_WORLD_SIZE": "four"})


# --- Groups and meshes ----------------------------------------------------------------------------


class Group:
    """A process group, as far as it is looked at."""

    group_name = "dp"


def test_a_group_wins_over_the_environment_and_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_group(monkeypatch, 1, 2)
    environ = {"RANK": "5", "WORLD_SIZE": "8"}
    assert resolve(environ=environ, process_group=Group()) == Topology(1, 2)
    mesh = SimpleNamespace(ndim=1, mesh_dim_names=("dp",), get_group=Group)
    assert resolve(environ=environ, mesh=mesh) == Topology(1, 2)


def test_a_process_outside_of_the_group_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_group(monkeypatch, -1, -1)
    with pytest.raises(TopologyError, match="this process is not in process_group="):
        resolve(environ={}, process_group=Group())


def test_a_mesh_of_several_dimensions_is_refused() -> None:
    mesh = SimpleNamespace(ndim=2, mesh_dim_names=("dp", "tp"))
    with pytest.raises(TopologyError, match=r"mesh= has 2 dimensions \(dp, tp\): .* mesh\['dp'\]"):
        resolve(environ={}, mesh=mesh)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((Topology(), Group(), None), "topology= and process_group= say the same in different way"),
        ((None, -100, None), "process_group=-100 is no process group .*not in it"),
        ((None, None, 3), "mesh=3 is no DeviceMesh"),
        (((0, 1), None, None), r"topology=\(0, 1\): give Topology"),
    ],
)
def test_what_says_no_topology_is_refused(said: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check_sources(*said)
