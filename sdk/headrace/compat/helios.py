"""The resumable samplers of helios: single indices, continued at ``start_iter`` batches.

Where they differ from their originals: a negative `start_iter` and a batch size below 1 are refused
at once, and `start_iter` belongs to one pass, so that the epochs after a resumed one are whole.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..checks import check_flag, check_integer
from ..errors import PlanError
from ..plans import Sequential, Shuffled
from ..topology import Topology
from .passes import AssertionPlanError, EpochPasses, choose_topology
from .registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized

_Class = TypeVar("_Class", bound=type[Any])

_SEED_MODULUS: Final = 2**32
"""torch seeds its CPU generator with the seed modulo this."""


class SamplerRegistry(Registry):
    """Samplers by the names of their classes."""

    def register(self, cls: _Class) -> _Class:
        """Register a class; also a decorator."""
        self.add(cls.__name__, cls)
        return cls


SAMPLER_REGISTRY: Final = SamplerRegistry("sampler")


def create_sampler(
    type_name: str,
    *args: Any,  # noqa: ANN401 - those of the class
    **kwargs: Any,  # noqa: ANN401
) -> ResumableSampler:
    """Return a sampler of a registered class.

    Raises:
        PlanError: If no class of that name is registered.
    """
    made: ResumableSampler = SAMPLER_REGISTRY[type_name](*args, **kwargs)
    return made


class ResumableSampler(EpochPasses):
    """Base of the samplers: indices of a plan with batches of a fixed size."""

    _start_iter = 0

    @property
    def start_iter(self) -> int:
        """Batches that the next pass leaves out at its start; that pass sets it back to 0."""
        return self._start_iter

    @start_iter.setter
    def start_iter(self, ite: int) -> None:
        check_integer("start_iter", ite, 0, 2**63, PlanError)
        self._start_iter = ite
        self._is_loaded = False

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the next pass."""
        return chain.from_iterable(batch.indices.tolist() for batch in self.planned())

    def _aim(self) -> bool:
        start_iter, self._start_iter = self._start_iter, 0
        if not start_iter:
            return super()._aim()
        steps = self._sampler.steps(self._epoch)
        if start_iter >= steps:
            return False
        # All epochs have the same steps.
        self._sampler.seek(update=self._epoch * steps + start_iter)
        return True


@SAMPLER_REGISTRY.register
class ResumableRandomSampler(ResumableSampler):
    """``torch.randperm`` of a generator that is seeded with ``seed + epoch``.

    Args:
        data_source: The dataset; its length is read once.
        seed: Any integer.
        batch_size: Samples per batch of the loader; the unit of `start_iter`.
    """

    def __init__(self, data_source: Sized, seed: int = 0, batch_size: int = 1) -> None:
        _check_batch_size(batch_size)
        plan = Shuffled(order="torch", seed=torch_seed(seed), batch_size=batch_size)
        self.data_source = data_source
        self.seed = seed
        self.batch_size = batch_size
        self._num_samples = len(data_source)
        self._run(plan, self._num_samples, Topology())

    def __len__(self) -> int:
        """Return the samples of a whole epoch, whatever `start_iter` is."""
        return self._num_samples


@SAMPLER_REGISTRY.register
class ResumableSequentialSampler(ResumableSampler):
    """The order of the dataset.

    Args:
        data_source: The dataset; its length is read once.
        batch_size: Samples per batch of the loader; the unit of `start_iter`.
    """

    def __init__(self, data_source: Sized, batch_size: int = 1) -> None:
        _check_batch_size(batch_size)
        self.data_source = data_source
        self.batch_size = batch_size
        self._num_samples = len(data_source)
        self._run(Sequential(batch_size=batch_size), self._num_samples, Topology())

    def __len__(self) -> int:
        """Return the samples of a whole epoch, whatever `start_iter` is."""
        return self._num_samples


@SAMPLER_REGISTRY.register
class ResumableDistributedSampler(ResumableSampler):
    """The share of one rank of either order, as torch's ``DistributedSampler`` deals it.

    Args:
        dataset: The dataset; its length is read once.
        num_replicas: Number of ranks; by default that of torch.distributed or torchrun, else 1.
        rank: Rank of this process, likewise.
        shuffle: Whether the order is that of `ResumableRandomSampler`.
        seed: Any integer, the same on all ranks.
        drop_last: Leave out the samples that the ranks do not divide, in place of repeating some.
        batch_size: Samples per batch of a rank; the unit of `start_iter`.

    Raises:
        TopologyError: If the rank is outside of the number of ranks.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        batch_size: int = 1,
    ) -> None:
        _check_batch_size(batch_size)
        check_flag("shuffle", shuffle, PlanError)
        check_flag("drop_last", drop_last, PlanError)
        topology = choose_topology(rank, num_replicas)
        uneven: Any = "drop" if drop_last else "fill"
        plan = (
            Shuffled(order="torch", seed=torch_seed(seed), batch_size=batch_size, uneven=uneven)
            if shuffle
            else Sequential(batch_size=batch_size, uneven=uneven)
        )
        self.dataset = dataset
        self.num_replicas = topology.world_size
        self.rank = topology.rank
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.batch_size = batch_size
        length = len(dataset)
        spare = 0 if drop_last else self.num_replicas - 1
        self.num_samples = (length + spare) // self.num_replicas
        self.total_size = self.num_samples * self.num_replicas
        self._run(plan, length, topology)

    def __len__(self) -> int:
        """Return the samples of this rank in a whole epoch, whatever `start_iter` is."""
        return self.num_samples


ResumableSamplerType = ResumableSampler
"""What `create_sampler` makes."""


def torch_seed(seed: int) -> int:
    """Return the seed that torch's CPU generator takes any integer for."""
    check_integer("seed", seed, -(2**63), 2**64, PlanError)
    return seed % _SEED_MODULUS


def _check_batch_size(batch_size: object) -> None:
    check_integer("batch_size", batch_size, 1, 2**31, AssertionPlanError)
