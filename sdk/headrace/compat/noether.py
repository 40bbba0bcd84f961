"""The interleaved sampler of noether (ksuit): a main sampler, and others run as a whole in between.

Items are pairs ``(is_last_of_batch, index)``, where indices count through all datasets in a row.
Where it differs from its original:

* It starts at any update, with or without `drop_last`; what follows is what an uninterrupted run
  would have gone on with.  At or past a limit nothing follows.
* A batch size below 1 is refused.  A main sampler without samples ends the run at once.
* A main sampler with a `start_iter` (`headrace.compat.helios`) starts the whole run there.
* Samplers that torch or `headrace.compat` made for a known order become plans, which a daemon can
  serve; any other is drawn from, in this process.  One with a live generator (torch's
  ``RandomSampler``) starts and continues at epochs only.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from ..checks import check_flag, check_integer
from ..errors import NoStepError, PlanError
from ..plans import Drawn, Every, Interleaved, Limits, Sequential, Shuffled
from ..plans.from_sampler import live_class
from ..topology import Topology
from . import helios
from .passes import PlanPasses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..plans import PlanBatchSampler

_INTERVALS: Final = ("every_n_epochs", "every_n_updates", "every_n_samples")
_LIMITS: Final = ("max_epochs", "max_updates", "max_samples")
_STARTS: Final = ("start_epoch", "start_update", "start_sample")


class ValidationError(PlanError):
    """A configuration is refused: a field is missing, out of range, or contradicts another."""


@dataclass(frozen=True)
class SamplerIntervalConfig:
    """A sampler that is run as a whole at an interval.

    Exactly one interval is given.

    Raises:
        ValidationError: If a field is out of range.
    """

    sampler: Any
    """Yields indices, has a length, and has its dataset as ``data_source`` or ``dataset``."""

    pipeline: Callable[[list[Any]], Any] | None
    """Collates the samples of a batch; None: as torch does."""

    every_n_epochs: int | None = None
    every_n_updates: int | None = None
    every_n_samples: int | None = None

    batch_size: int | None = None
    """Samples per batch; by default those of the main sampler.  Needed with `every_n_samples`."""

    def __post_init__(self) -> None:
        given = [name for name in _INTERVALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValidationError(
                f"exactly one of {', '.join(_INTERVALS)} is needed; got "
                f"{', '.join(given) or 'none'}"
            )
        for name in (*given, *(["batch_size"] if self.batch_size is not None else [])):
            check_integer(name, getattr(self, name), 1, 2**31, ValidationError)
        if self.every_n_samples is not None and self.batch_size is None:
            raise ValidationError("batch_size is needed with every_n_samples, as in the original")

    @property
    def interval(self) -> dict[str, Any]:
        """The interval as `headrace.plans.Every` takes it."""
        return {
            name.removeprefix("every_n_"): getattr(self, name)
            for name in _INTERVALS
            if getattr(self, name) is not None
        }


@dataclass(frozen=True)
class InterleavedSamplerConfig:
    """How the main sampler is cut, and where the run starts and ends.

    Raises:
        ValidationError: If a field is out of range.
    """

    batch_size: int
    drop_last: bool = True

    max_epochs: int | None = None
    max_updates: int | None = None
    max_samples: int | None = None
    """The first limit that is reached ends the run; at least one is needed, 0 evaluates only."""

    start_epoch: int | None = None
    start_update: int | None = None
    start_sample: int | None = None
    """Where the run starts; at most one is given."""

    evaluation: bool = False
    """Run every other sampler once, and the main one not at all."""

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1, 2**31, ValidationError)
        check_flag("drop_last", self.drop_last, ValidationError)
        check_flag("evaluation", self.evaluation, ValidationError)
        for name in (*_LIMITS, *_STARTS):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 0, 2**63, ValidationError)
        if all(getattr(self, name) is None for name in _LIMITS):
            raise ValidationError(f"at least one of {', '.join(_LIMITS)} is needed; got none")
        starts = [name for name in _STARTS if getattr(self, name) is not None]
        if len(starts) > 1:
            raise ValidationError(
                f"at most one of {', '.join(_STARTS)} is possible; got {', '.join(starts)}"
            )
        if self.start_sample is not None and self.start_sample % self.batch_size:
            raise ValidationError(
                f"start_sample={self.start_sample} must be a multiple of batch_size="
                f"{self.batch_size}"
            )

    @property
    def limits(self) -> Limits:
        """The limits as plans take them."""
        if self.evaluation:
            return Limits(updates=0)
        return Limits(epochs=self.max_epochs, updates=self.max_updates, samples=self.max_samples)


class InterleavedSampler(PlanPasses):
    """Batches of a main sampler, and of others in between.

    Every pass is the whole run from its start.

    Args:
        train_sampler: The main sampler: yields indices, has a length, and has its dataset as
            ``data_source`` or ``dataset``.
        config: How it is cut, and where the run starts and ends.
        train_collator: Collates the samples of a batch of it; None: as torch does.
        callback_samplers: The others, in the sequence in which they run when they fall together.

    Raises:
        PlanError: If a sampler cannot be run, or the start is no edge of a batch.
        NotImplementedError: If a sampler does not say what its dataset is.
    """

    def __init__(
        self,
        train_sampler: Any,  # noqa: ANN401 - any sampler
        config: InterleavedSamplerConfig,
        train_collator: Callable[[list[Any]], Any] | None = None,
        callback_samplers: list[SamplerIntervalConfig] | None = None,
    ) -> None:
        extras = list(callback_samplers or [])
        self.config = config
        self.main_sampler = train_sampler
        self.extra_samplers = extras
        samples = len(train_sampler)
        is_clamped = config.drop_last and 0 < samples < config.batch_size
        self.batch_size = samples if is_clamped else config.batch_size
        self.samples_per_epoch = (
            samples // self.batch_size * self.batch_size if config.drop_last else samples
        )
        datasets = [_dataset(train_sampler), *(_dataset(extra.sampler) for extra in extras)]
        self.dataset = InterleavedDataset(datasets)
        self.index_offsets = list(accumulate(map(len, datasets)))[: max(1, len(extras))]
        self.collator = InterleavedCollator([train_collator, *(extra.pipeline for extra in extras)])
        self.batch_sampler = InterleavedBatchSampler(self)
        names = [f"callback_{number}" for number in range(len(extras))]
        self._lengths = dict(zip(("train", *names), map(len, datasets), strict=True))
        self._topology = _topology([train_sampler, *(extra.sampler for extra in extras)])
        self._made = Interleaved(
            train=self._train_plan(),
            extras={name: self._every(extra) for name, extra in zip(names, extras, strict=True)},
            limits=config.limits,
            samples_of="rank",
        )
        self._run(self._made, self._lengths, self._topology)
        self._num_batches: int | None = None
        self.start_epoch, self.start_update, self.start_sample = self._counters()

    def __iter__(self) -> Iterator[tuple[bool, int]]:
        """Yield pairs of whether an index is the last of its batch, and the index."""
        return chain.from_iterable(map(_pairs, self.batches()))

    def batches(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of the run."""
        return (self._sampler.indices_of(batch) for batch in self.planned())

    @property
    def num_batches(self) -> int:
        """Batches of the whole run from its start, those of all samplers."""
        if self._num_batches is None:
            apart = self._made.batch_sampler(
                self._lengths, self._topology.rank, self._topology.world_size
            )
            self._num_batches = apart.remaining if _go(apart, self._where()) else 0
        return self._num_batches

    def get_data_loader(self, num_workers: int = 0, pin_memory: bool = False) -> Any:  # noqa: ANN401
        """Return a torch ``DataLoader`` over all datasets in the order of this sampler."""
        from torch.utils.data import DataLoader

        return DataLoader(
            dataset=cast("Any", self.dataset),
            batch_sampler=self.batch_sampler,
            collate_fn=self.collator,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue where `state_dict` was taken.

        Raises:
            PlanError: If it is within what a live generator has ordered, as that order cannot be
                made again.
        """
        super().load_state_dict(state)
        self._is_loaded = False
        self._refuse_live(state)
        self._is_loaded = True

    def _refuse_live(self, state: dict[str, Any]) -> None:
        """Refuse a place within an epoch, or a run, of a sampler with a live generator."""
        child = state.get("child") or {}
        within = []
        if child.get("main", (0, 0))[1]:
            within.append(self.main_sampler)
        if "extra" in child and child["extra"][1][1]:
            within.append(self.extra_samplers[child["extra"][0]].sampler)
        live = next(filter(None, map(live_class, within)), None)
        if live:
            raise PlanError(
                f"update {state['update']} is within an order of {live}, which comes from a live "
                "generator and cannot be made again: start at an epoch, or use "
                "headrace.compat.helios.ResumableRandomSampler"
            )

    def _aim(self) -> bool:
        if self._made.is_local:
            # What was drawn from a sampler belongs to one pass.
            self._run(self._made, self._lengths, self._topology)
        return _go(self._sampler, self._where())

    def _where(self) -> dict[str, int]:
        """Return where the run starts, as `PlanBatchSampler.seek` takes it."""
        start = {
            name.removeprefix("start_"): getattr(self.config, name)
            for name in _STARTS
            if getattr(self.config, name) is not None
        }
        skipped = getattr(self.main_sampler, "start_iter", 0)
        if not skipped:
            return start or {"update": 0}
        samples = skipped * self.main_sampler.batch_size
        if start or samples % self.batch_size:
            raise PlanError(
                f"start_iter={skipped} of the main sampler is {samples} samples: it must be a "
                f"multiple of batch_size={self.batch_size}, and goes with no start of the config"
            )
        return {"update": samples // self.batch_size}

    def _counters(self) -> tuple[int, int, int]:
        """Return epoch, update and sample (of this rank) at the start."""
        if not _go(self._sampler, self._where()):
            return 0, 0, 0
        state = self._sampler.state_dict()
        self._refuse_live(state)
        child = state["child"] or {"main": [0], "count": 0}
        return child["main"][0], state["update"], child["count"]

    def _train_plan(self) -> Any:  # noqa: ANN401 - a single plan
        tail: Any = "drop" if self.config.drop_last else "short"
        known = _known(self.main_sampler)
        if known is not None and known.topology in (None, self._topology):
            return _plan(known, 0, batch_size=self.batch_size, tail=tail)
        drawn = _Main(self.main_sampler, self.samples_per_epoch)
        return Drawn(sampler=drawn, batch_size=self.batch_size, tail=tail, replicated=True)

    def _every(self, extra: SamplerIntervalConfig) -> Every:
        options: dict[str, Any] = {"batch_size": extra.batch_size or self.batch_size}
        options["tail"] = "short"
        known = _known(extra.sampler)
        if getattr(extra.sampler, "start_iter", 0):
            raise PlanError(
                "start_iter of a callback sampler would leave out the same samples in "
                "each of its runs: set it to 0"
            )
        if known is not None and known.topology in (None, self._topology):
            # Nobody sets the epoch of a callback sampler: it has the same order each time.
            plan = _plan(known, known.epoch, **options)
            return Every(plan, same_order=True, **extra.interval)
        drawn = _Extra(extra.sampler, len(extra.sampler))
        return Every(Drawn(sampler=drawn, replicated=True, **options), **extra.interval)


class InterleavedBatchSampler:
    """The batches of an `InterleavedSampler`, for ``DataLoader(batch_sampler=…)``."""

    def __init__(self, sampler: InterleavedSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of the run."""
        return self.sampler.batches()

    def __len__(self) -> int:
        """Return the batches of the whole run from its start."""
        return self.sampler.num_batches


class InterleavedDataset:
    """Datasets in a row; an item is the number of its dataset, and the sample."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = list(datasets)
        self.cumulative_sizes = list(accumulate(map(len, self.datasets)))

    def __len__(self) -> int:
        """Return the samples of all datasets."""
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """Return the number of the dataset that has the index, and the sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} is outside of 0..{len(self) - 1}")
        number = bisect_right(self.cumulative_sizes, index)
        first = self.cumulative_sizes[number - 1] if number else 0
        return number, self.datasets[number][index - first]


class InterleavedCollator:
    """Collates a batch as the dataset that it is from wants it."""

    def __init__(self, collators: Sequence[Callable[[list[Any]], Any] | None]) -> None:
        self.collators = list(collators)

    def __call__(self, batch: list[tuple[int, Any]]) -> Any:  # noqa: ANN401
        """Return what the collator of the dataset makes of its samples."""
        numbers, samples = zip(*batch, strict=True)
        collate = self.collators[numbers[0]]
        if collate is None:
            from torch.utils.data import default_collate

            collate = default_collate
        return collate(list(samples))


class _Known(NamedTuple):
    """What a sampler of a known class does."""

    seed: int | None
    """Seed of torch's permutation; None: the order of the dataset."""

    epoch: int
    """The epoch that it is at."""

    topology: Topology | None
    """The rank whose share it yields; None: it yields everything."""

    uneven: Any = None


def _known(sampler: Any) -> _Known | None:  # noqa: ANN401 - any sampler
    """Return what a sampler does, if its class says it; subclasses may do anything."""
    kind = type(sampler)
    if kind is helios.ResumableRandomSampler:
        return _Known(sampler.seed, sampler.epoch, None)
    if kind is helios.ResumableSequentialSampler:
        return _Known(None, 0, None)
    # Only a process that has imported torch can have made one of its samplers.
    data = sys.modules.get("torch.utils.data")
    if data is not None and kind is data.SequentialSampler:
        return _Known(None, 0, None)
    if kind is helios.ResumableDistributedSampler or (
        data is not None and kind is data.DistributedSampler
    ):
        return _Known(
            sampler.seed if sampler.shuffle else None,
            sampler.epoch,
            Topology(sampler.rank, sampler.num_replicas),
            "drop" if sampler.drop_last else "fill",
        )
    return None


def _plan(known: _Known, epoch: int, **options: Any) -> Sequential | Shuffled:  # noqa: ANN401
    """Return the plan of a known sampler, whose epoch 0 is `epoch` of the sampler."""
    options["uneven"] = known.uneven
    options["replicated"] = known.topology is None
    if known.seed is None:
        return Sequential(**options)
    return Shuffled(order="torch", seed=(known.seed + epoch) % 2**32, **options)


def _topology(samplers: Sequence[Any]) -> Topology:
    """Return the rank that the first sampler knows that knows one."""
    known = (_known(sampler) for sampler in samplers)
    return next((one.topology for one in known if one and one.topology), Topology())


class _Extra:
    """A sampler that is iterated afresh for each of its runs, and told nothing."""

    def __init__(self, sampler: Any, length: int) -> None:  # noqa: ANN401 - any sampler
        # By a name of our own, so that nobody looks behind it for what it does not have.
        self._of_user = sampler
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self._of_user)


class _Main(_Extra):
    """A main sampler: told its epoch, and left after the entries of one."""

    def set_epoch(self, epoch: int) -> None:
        told = getattr(self._of_user, "set_epoch", None)
        if callable(told):
            told(epoch)


def _go(sampler: PlanBatchSampler, where: dict[str, int]) -> bool:
    """Make a pass begin somewhere; False if nothing follows."""
    try:
        sampler.seek(**where)
    except NoStepError:
        return False
    return True


def _pairs(indices: list[int]) -> Iterator[tuple[bool, int]]:
    is_last = chain(repeat(False, len(indices) - 1), (True,))
    return zip(is_last, indices, strict=True)


def _dataset(sampler: Any) -> Any:  # noqa: ANN401 - any sampler and dataset
    for name in ("data_source", "dataset"):
        if hasattr(sampler, name):
            return getattr(sampler, name)
    raise NotImplementedError(
        f"{type(sampler).__name__} does not say what its dataset is: give it an attribute "
        "data_source or dataset"
    )
