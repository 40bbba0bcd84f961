"""Which consumer of how many this process is.

The plan is cut for all ranks together; a `Topology` picks one rank's share of each step.  It is
resolved at the first pass over a dataset and not in its constructor, because process groups are
often made later than datasets.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .checks import check_integer
from .errors import PlanError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Topology(msgspec.Struct, frozen=True):
    """Rank and number of data-parallel consumers.

    Ranks that replicate data (tensor or pipeline parallel groups) pass the same data-parallel
    rank and receive identical batches.
    """

    rank: int = 0
    """Data-parallel rank of this consumer, ``0 <= rank < world_size``."""

    world_size: int = 1
    """Number of data-parallel consumers."""

    def __post_init__(self) -> None:
        check_integer("world_size", self.world_size, 1, 2**31, TopologyError)
        check_integer("rank", self.rank, 0, self.world_size, TopologyError)


def check_sources(topology: object, process_group: object, mesh: object) -> None:
    """Refuse what a caller gave to `resolve`, before anything is asked of it.

    Raises:
        PlanError: If more than one is given, or one is of the wrong kind.
    """
    said = {"topology": topology, "process_group": process_group, "mesh": mesh}
    given = [name for name, value in said.items() if value is not None]
    if len(given) > 1:
        raise PlanError(
            f"{' and '.join(f'{name}=' for name in given)} say the same in different ways: give "
            "one of them"
        )
    if topology is not None and not isinstance(topology, Topology):
        raise PlanError(f"topology={topology!r}: give Topology(rank, world_size)")
    if process_group is not None and not hasattr(process_group, "group_name"):
        raise PlanError(
            f"process_group={process_group!r} is no process group of torch.distributed (new_group "
            "returns a number to processes that are not in it)"
        )
    if mesh is not None and not hasattr(mesh, "mesh_dim_names"):
        raise PlanError(f"mesh={mesh!r} is no DeviceMesh of torch.distributed")


def resolve(
    explicit: Topology | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    process_group: Any = None,  # noqa: ANN401 - a ProcessGroup, whose module may be absent
    mesh: Any = None,  # noqa: ANN401 - a DeviceMesh, likewise
) -> Topology:
    """Return the topology of this process.

    An explicit one wins, then a process group or a mesh.  Otherwise ``torch.distributed`` is asked
    if this process has initialised it, then the variables ``RANK`` and ``WORLD_SIZE`` that torchrun
    sets; without either, the process is alone.

    Args:
        explicit: What the caller passed, if anything.
        environ: The environment to read; the process's own by default.
        process_group: The ranks that share the data.
        mesh: The same as a mesh of one dimension.

    Raises:
        TopologyError: If the process is not in the group, the mesh has several dimensions, the
            variables are malformed, only one of them is set, or they
            contradict torch.distributed.
    """
    if explicit is not None:
        return explicit
    if process_group is not None:
        return of_group(process_group)
    if mesh is not None:
        return of_mesh(mesh)
    from_env = _from_environ(os.environ if environ is None else environ)
    from_group = _from_process_group()
    if from_env is not None and from_group is not None and from_env != from_group:
        raise TopologyError(
            f"torch.distributed says rank {from_group.rank} of {from_group.world_size}, the "
            f"environment says RANK={from_env.rank} WORLD_SIZE={from_env.world_size}: pass "
            "topology=Topology(rank, world_size) to say which one counts"
        )
    return from_group or from_env or Topology()


def of_group(group: Any) -> Topology:  # noqa: ANN401 - a ProcessGroup, whose module may be absent
    """Return the topology of this process in a process group of torch.distributed.

    Raises:
        TopologyError: If it is not in that group.
    """
    distributed = sys.modules["torch.distributed"]
    rank = distributed.get_rank(group)
    if rank < 0:
        raise TopologyError(
            "this process is not in process_group=: give that of its own data ranks"
        )
    return Topology(rank, distributed.get_world_size(group))


def of_mesh(mesh: Any) -> Topology:  # noqa: ANN401 - a DeviceMesh, whose module may be absent
    """Return the topology of this process in a device mesh of one dimension.

    Raises:
        TopologyError: If the mesh has several dimensions, or this process is not in it.
    """
    if mesh.ndim != 1:
        names = ", ".join(mesh.mesh_dim_names or ("without names",))
        raise TopologyError(
            f"mesh= has {mesh.ndim} dimensions ({names}): give the one over which data is split, "
            "mesh['dp'] for example; ranks along the others then get the same batches"
        )
    return of_group(mesh.get_group())


class Siblings(NamedTuple):
    """The processes of a run on this node."""

    name: str
    """The same in all of them and in no other run; empty where nothing tells."""

    ranks: int
    """How many there are, this one included."""


def siblings(environ: Mapping[str, str] | None = None) -> Siblings:
    """Return what torchrun says of the ranks on this node; without it, this process is alone.

    Raises:
        TopologyError: If LOCAL_WORLD_SIZE is not a number.
    """
    environ = os.environ if environ is None else environ
    text = environ.get("LOCAL_WORLD_SIZE", "")
    if not text:
        return Siblings("", 1)
    try:
        ranks = int(text)
    except ValueError:
        raise TopologyError(
            f"the environment has LOCAL_WORLD_SIZE={text!r}: it must be an integer"
        ) from None
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return Siblings("/".join(environ.get(name, "") for name in names), max(1, ranks))


def _from_environ(environ: Mapping[str, str]) -> Topology | None:
    texts = {name: environ[name] for name in ("RANK", "WORLD_SIZE") if environ.get(name)}
    if not texts:
        return None
    if len(texts) == 1:
        ((name, text),) = texts.items()
        other = "WORLD_SIZE" if name == "RANK" else "RANK"
        raise TopologyError(
            f"the environment has {name}={text} but no {other}: set both (torchrun does), "
            "unset both, or pass topology="
        )
    try:
        rank, world_size = int(texts["RANK"]), int(texts["WORLD_SIZE"])
    except ValueError:
        raise TopologyError(
            f"the environment has RANK={texts['RANK']!r} WORLD_SIZE={texts['WORLD_SIZE']!r}: "
            "both must be integers"
        ) from None
    return Topology(rank, world_size)


def _from_process_group() -> Topology | None:
    # Only a process that has already imported torch.distributed can have initialised it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available():
        return None
    if not distributed.is_initialized():
        return None
    return Topology(distributed.get_rank(), distributed.get_world_size())
