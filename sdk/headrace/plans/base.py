"""What the public plans have in common: fields, validation and the digest.

A plan is a frozen value that knows nothing of the data.  It travels over the wire and stands in a
configuration as a plain map, told apart by ``type``.  Bound to data (`headrace.plans.data.Data`) it
becomes a program, which is executed by `headrace.plans.engine`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, cast

import msgspec

from ..checks import check_choice, check_flag, check_integer
from ..errors import PlanError
from .cut import FixedCut, Tail, Uneven

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sources import Source
    from .composite import Plan
    from .data import Data
    from .program import Program
    from .sampler import PlanBatchSampler

MAX_SUBSET: Final = 100_000
"""Indices that a subset lists at most: a plan has to fit one message."""

_SHORT: Final = 200
"""Bytes up to which a value stands in a description as it is."""

# A field that came later enters the digest only where it is not at its default, so that cursors
# outlive it.
_ALWAYS_IN_DIGEST: Final = frozenset({"batch_size", "global_batch_size", "tail", "order", "seed"})


class Described(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    repr_omit_defaults=True,
):
    """A frozen, validated value with a digest: every plan."""

    NOT_IN_DIGEST: ClassVar[frozenset[str]] = frozenset()
    """Fields that may change between a cursor and its continuation."""

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the fields, in hex; world size and limits excluded."""
        return hashlib.sha256(msgspec.json.encode(self.canonical(), order="sorted")).hexdigest()

    def canonical(self) -> dict[str, Any]:
        """Return the fields that the digest covers, as plain data."""
        facts: dict[str, Any] = {"type": self.__struct_config__.tag}
        defaults = dict(
            zip(reversed(self.__struct_fields__), reversed(self.__struct_defaults__), strict=False)
        )
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name in self.NOT_IN_DIGEST:
                continue
            if name in _ALWAYS_IN_DIGEST or value != defaults.get(name, msgspec.NODEFAULT):
                facts[name] = _plain(value)
        return facts

    @property
    def is_local(self) -> bool:
        """Whether it holds objects of this process, and so can run nowhere else."""
        return False

    @property
    def sources(self) -> dict[str, Source]:
        """The sources that parts of a composition have for themselves, by name of the part."""
        return {}

    def with_sources(self, change: Callable[[Source], Source]) -> Self:
        """Return the plan with another source for each part that has its own."""
        return self

    @property
    def description(self) -> str:
        """The canonical fields as JSON, long values replaced by a digest."""
        facts = {name: _short(value) for name, value in self.canonical().items()}
        return msgspec.json.encode(facts, order="sorted").decode()

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data.

        Args:
            data: Length, and sizes or shards where the plan needs them.
            role: Which stream of a composition this is; enters the keys of computed orders.

        Raises:
            PlanError: If the plan does not fit the data.
        """
        raise NotImplementedError

    def batch_sampler(
        self,
        data: int | Any | Data | Mapping[str, Any],  # noqa: ANN401 - sizes are any array
        rank: int | None = None,
        world_size: int | None = None,
    ) -> PlanBatchSampler:
        """Return a batch sampler for a map-style dataset: the same batches, without a daemon.

        Args:
            data: The length of the dataset, the sizes of its samples, or a `Data`; for a plan with
                several streams, a map of these by name.
            rank: Rank of this process; by default as `DaemonDataset` finds it.
            world_size: Number of processes, likewise.

        Raises:
            PlanError: If the plan does not fit the data.
            TopologyError: If only one of rank and world_size is given, or they are out of range.
        """
        from .sampler import PlanBatchSampler

        return PlanBatchSampler(cast("Plan", self), data, rank, world_size)


class Slice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """Every `step`-th sample from `start` on and before `stop`."""

    start: int = 0
    stop: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        check_integer("subset start", self.start, 0, 2**63, PlanError)
        if self.stop is not None:
            check_integer("subset stop", self.stop, 0, 2**63, PlanError)
        check_integer("subset step", self.step, 1, 2**63, PlanError)


class Ordered(Described, frozen=True, kw_only=True):
    """The modifiers of an order, in the sequence in which they act.

    `subset` → `pad_to` → `node_blocks` → the order itself → `reverse` → `repeats` → `truncate` →
    `part`.
    """

    subset: Slice | tuple[int, ...] | None = None
    """Take only these samples: ``Slice(start, stop, step)`` or their indices; all by default."""

    pad_to: int = 1
    """Before ordering, repeat the first samples until the number is a multiple of this (the
    cvnets samplers pad to the number of processes).  The copies carry the flag ``padding``."""

    node_blocks: int = 1
    """Cut the samples into this many contiguous blocks, one for each node: the ranks of a node
    share out its block and never see another.  The world size must be a multiple of it."""

    reverse: bool = False
    """Run through the order from its end."""

    repeats: int = 1
    """Take each entry of the order this many times in a row (repeated augmentation)."""

    truncate: bool = False
    """Keep only as many entries as there were before `repeats`."""

    part: tuple[int, int] | None = None
    """``(offset, every)``: of what the other modifiers make, take only every so manieth entry, from
    an offset on: the share of one rank of a sampler that deals unequal shares."""

    replicated: bool = False
    """Give all ranks every sample instead of sharing them out."""

    def __post_init__(self) -> None:
        self._check_subset()
        check_integer("pad_to", self.pad_to, 1, 2**31, PlanError)
        check_integer("node_blocks", self.node_blocks, 1, 2**20, PlanError)
        check_integer("repeats", self.repeats, 1, 2**16, PlanError)
        self._check_part()
        for name in ("reverse", "truncate", "replicated"):
            check_flag(name, getattr(self, name), PlanError)
        if self.replicated and self.node_blocks > 1:
            raise PlanError(
                f"replicated=True contradicts node_blocks={self.node_blocks}: all ranks get every "
                "sample, or each node its block"
            )

    def _check_part(self) -> None:
        if self.part is None:
            return
        if not isinstance(self.part, tuple | list) or len(self.part) != 2:
            raise PlanError(f"part={self.part!r} must be (offset, every)")
        offset, every = self.part
        check_integer("part every", every, 1, 2**31, PlanError)
        check_integer("part offset", offset, 0, every, PlanError)
        msgspec.structs.force_setattr(self, "part", (offset, every))

    def _check_subset(self) -> None:
        subset = self.subset
        if subset is None or isinstance(subset, Slice):
            return
        if not isinstance(subset, tuple | list) or not 1 <= len(subset) <= MAX_SUBSET:
            is_list = isinstance(subset, tuple | list)
            value = f"{type(subset).__name__} of {len(subset)} indices" if is_list else repr(subset)
            raise PlanError(
                f"subset={value} is out of range: give Slice(start, stop, step), or a tuple of "
                f"1..{MAX_SUBSET} indices"
            )
        for index in subset:
            check_integer("subset index", index, 0, 2**63, PlanError)
        msgspec.structs.force_setattr(self, "subset", tuple(subset))


class FixedBatches(Ordered, frozen=True, kw_only=True):
    """What all plans share whose batches have a size that is known before the data.

    Exactly one of `batch_size` and `global_batch_size` is given.
    """

    batch_size: int | None = None
    """Samples per step of each rank."""

    global_batch_size: int | None = None
    """Samples per step of all ranks together; the world size must divide it."""

    tail: Tail = "short"
    """What becomes of the last samples of an epoch, those that fill no whole step.

    ``"short"``: one smaller step, the same size on all ranks, filled up from the start of the
    order where the ranks do not divide it; ``"drop"``: nothing; ``"wrap"``: one whole step,
    filled up from the start of the order, several times over if need be; ``"wrap-once"``: the
    same, with each entry of the order at most once among the fillers.  Fillers carry the flag
    ``padding``.
    """

    uneven: Uneven | None = None
    """What becomes of the last entries of an epoch where the ranks do not divide them, before the
    tail is cut: ``"fill"`` makes them a multiple from the start of the order, ``"drop"`` leaves
    them out.  By default ``"drop"`` with ``tail="drop"``, else ``"fill"``.  (The samplers of torch
    do this per rank, by their own ``drop_last``, whatever the loader does with its last batch.)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cut()

    def cut(self) -> FixedCut:
        """Return the cut of this plan.

        Raises:
            PlanError: If the batch size is missing, doubled or out of range.
        """
        return FixedCut(
            batch_size=self.batch_size,
            global_batch_size=self.global_batch_size,
            tail=self.tail,
            uneven=self.uneven,
        )


OrderName = Literal["sequential", "keyed", "torch", "torch-continued", "python"]
ORDERS: Final = ("sequential", "keyed", "torch", "torch-continued", "python")


def check_order(order: object, seed: object, *, allowed: tuple[str, ...] = ORDERS) -> None:
    """Refuse an unknown order, or a seed out of range."""
    check_choice("order", order, allowed, PlanError)
    check_integer("seed", seed, 0, 2**64, PlanError)


def _plain(value: object) -> Any:  # noqa: ANN401 - plain data
    if isinstance(value, Described):
        return value.canonical()
    if isinstance(value, Mapping):
        # As pairs: their sequence counts, and canonical JSON sorts keys.
        return [[name, _plain(item)] for name, item in value.items()]
    if isinstance(value, msgspec.Struct):
        # Where the data is does not matter: what it is has a digest of its own.
        names = (name for name in value.__struct_fields__ if name != "source")
        return {name: _plain(getattr(value, name)) for name in names}
    return msgspec.to_builtins(value)


def _short(value: object) -> Any:  # noqa: ANN401 - plain data
    text = msgspec.json.encode(value, order="sorted")
    return value if len(text) <= _SHORT else f"sha256 {hashlib.sha256(text).hexdigest()[:16]}"
