"""What the drop-in classes share: a plan over data, and where the next pass begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checks import check_integer
from ..errors import PlanError, TopologyError
from ..topology import Topology, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..plans import Data, Plan, PlanBatchSampler
    from ..plans.engine import PlannedBatch


class PlanPasses:
    """Runs a plan pass by pass.

    Subclasses say in `_aim` where a pass begins that no loaded state asks for.
    """

    _sampler: PlanBatchSampler
    _is_loaded = False

    def _run(
        self,
        plan: Plan,
        data: int | Any | Data | Mapping[str, Any],  # noqa: ANN401 - sizes are any array
        topology: Topology,
    ) -> None:
        """Take a plan; a pass in progress is over."""
        self._sampler = plan.batch_sampler(data, topology.rank, topology.world_size)
        self._is_loaded = False

    @property
    def plan(self) -> Plan:
        """The plan that is run."""
        return self._sampler.plan

    def planned(self) -> Iterator[PlannedBatch]:
        """Yield the planned batches of one pass.

        It begins with the first batch that is asked for, not with the call.
        """
        if self._begin():
            yield from self._sampler.batches()

    def state_dict(self, *, after: int | None = None) -> dict[str, Any]:
        """Return the position as small plain data (see `headrace.plans.PlanBatchSampler`)."""
        return self._sampler.state_dict(after=after)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue where `state_dict` was taken."""
        self._sampler.load_state_dict(state)
        self._is_loaded = True

    def _begin(self) -> bool:
        """Make the pass begin where it has to; False if it is empty."""
        if self._is_loaded:
            self._is_loaded = False
            return True
        return self._aim()

    def _aim(self) -> bool:
        """Make the next pass begin where this sampler says; False if nothing follows."""
        raise NotImplementedError


class EpochPasses(PlanPasses):
    """Passes over the epoch that `set_epoch` names; the same one again without it."""

    _epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; a loaded state of the same epoch stays."""
        check_integer("epoch", epoch, 0, 2**63, PlanError)
        if epoch != self._epoch:
            self._is_loaded = False
        self._epoch = epoch

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue where `state_dict` was taken, in the epoch of the state."""
        super().load_state_dict(state)
        self._epoch = self._sampler.epoch

    def _aim(self) -> bool:
        self._sampler.begin(self._epoch)
        return True


def choose_topology(rank: int | None, world_size: int | None) -> Topology:
    """Return what was given, completed by what this process knows of itself.

    Raises:
        TopologyError: If the rank is out of range.
    """
    found = Topology() if rank is not None and world_size is not None else resolve()
    world_size = found.world_size if world_size is None else world_size
    check_integer("num_replicas", world_size, 1, 2**31, TopologyError)
    rank = found.rank if rank is None else rank
    check_integer("rank", rank, 0, world_size, TopologyError)
    return Topology(rank, world_size)


class AssertionPlanError(PlanError, AssertionError):
    """A refused argument whose original raises AssertionError."""
