"""The public plans made of plans: one after the other, in turn, or extras at intervals.

`Plan`, the union of all plans that travel, is defined here, because these contain it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast

import msgspec

from ..checks import check_choice, check_flag, check_integer
from ..errors import PlanError
from .base import Described
from .from_sampler import Drawn, FromSampler
from .scaled import MultiScale, VariableBatch, VideoVariable
from .spec import ByteBudget, Sequential, ShardShuffled, Shuffled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..sources import Source
    from .data import Data
    from .program import Program

__all__ = ["Chain", "Every", "Interleaved", "Limits", "Link", "Plan", "SinglePlan", "parts_of"]

if TYPE_CHECKING:
    # One that holds a sampler of this process is taken too, but never read from a map.
    SinglePlan = (
        Sequential
        | Shuffled
        | ShardShuffled
        | ByteBudget
        | MultiScale
        | VariableBatch
        | VideoVariable
        | Drawn
    )
else:
    SinglePlan = (
        Sequential
        | Shuffled
        | ShardShuffled
        | ByteBudget
        | MultiScale
        | VariableBatch
        | VideoVariable
    )
"""All plans over one order."""


class Link(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    tag_field="type",
    tag="Link",
):
    """A plan of a `Chain`, with a source of its own if it has one."""

    plan: SinglePlan
    """What is executed."""

    source: Any = None
    """Where its samples are (`headrace.Objects`); None: the source of the stream."""

    def __post_init__(self) -> None:
        _check_single("plan", self.plan)
        msgspec.structs.force_setattr(self, "source", _source(self.source))


class Chain(Described, frozen=True, kw_only=True, tag="Chain"):
    """Several plans in one stream: each batch belongs to one of them and carries its name.

    An epoch of the chain is one epoch of each plan.

    Example:
        >>> Chain(plans={"a": Sequential(batch_size=2), "b": Sequential(batch_size=3)}).mode
        'sequential'
    """

    plans: dict[str, Link | SinglePlan]
    """The plans by name, in their sequence; a `Link` gives one a source of its own."""

    mode: Literal["sequential", "interleave"] = "sequential"
    """``"sequential"``: one plan to its end, then the next; ``"interleave"``: a step of each in
    turn; a plan that has reached its end drops out."""

    def __post_init__(self) -> None:
        _check_names("plans", self.plans)
        links = {
            name: link if isinstance(link, Link) else Link(link)
            for name, link in self.plans.items()
        }
        msgspec.structs.force_setattr(self, "plans", links)
        check_choice("mode", self.mode, ("sequential", "interleave"), PlanError)

    @property
    def links(self) -> dict[str, Link]:
        """The plans by name, each as a `Link`."""
        return self.plans  # type: ignore[return-value]

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def is_local(self) -> bool:
        """Whether a part holds objects of this process."""
        return any(link.plan.is_local for link in self.links.values())

    @property
    def sources(self) -> dict[str, Source]:
        """The sources of links that have their own, by name."""
        return _sources(self.links)

    def over(self, sources: Mapping[str, Source]) -> Self:
        """Return the chain with a source of its own for each link that is named.

        Raises:
            PlanError: If there is no link of a name.
        """
        links = cast("dict[str, Link | SinglePlan]", _over(self.links, sources))
        return msgspec.structs.replace(self, plans=links)

    def with_sources(self, change: Callable[[Source], Source]) -> Self:
        """Return the chain with another source for each link that has its own."""
        links = cast("dict[str, Link | SinglePlan]", _with_sources(self.links, change))
        return msgspec.structs.replace(self, plans=links)

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .chain import ChainProgram

        return ChainProgram(self, data)


class Every(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """A plan that is run as a whole between steps of the main one, at an interval.

    Exactly one interval is given.  It counts what the main plan has done since the start of the
    run; an interval that is crossed several times within one update fires once.
    """

    plan: SinglePlan
    """What is run, one of its epochs each time."""

    epochs: int | None = None
    """After every so many epochs of the main plan."""

    updates: int | None = None
    """After every so many updates: steps of the main plan, or groups of ``accumulate``."""

    samples: int | None = None
    """Whenever the samples pass a multiple of this."""

    batch_size: int | None = None
    """Samples per step and rank, in place of those of `plan`."""

    source: Any = None
    """Where its samples are (`headrace.Objects`); None: the source of the stream."""

    same_order: bool = False
    """Whether each run has the order of epoch 0; else the k-th run has that of epoch k."""

    def __post_init__(self) -> None:
        _check_single("plan", self.plan)
        check_flag("same_order", self.same_order, PlanError)
        intervals = {name: getattr(self, name) for name in ("epochs", "updates", "samples")}
        given = {name: value for name, value in intervals.items() if value is not None}
        if len(given) != 1:
            raise PlanError(
                f"an extra takes exactly one of epochs=, updates=, samples=; got {given or 'none'}"
            )
        ((name, value),) = given.items()
        check_integer(name, value, 1, 2**63, PlanError)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1, 2**31, PlanError)
            if isinstance(self.plan, ByteBudget):
                raise PlanError(
                    f"batch_size={self.batch_size} does not go with ByteBudget, whose batches the "
                    "budget cuts: leave it out"
                )
        msgspec.structs.force_setattr(self, "source", _source(self.source))

    @property
    def effective_plan(self) -> SinglePlan:
        """The plan with the batch size that counts."""
        if self.batch_size is None or isinstance(self.plan, ByteBudget):
            return self.plan
        return msgspec.structs.replace(
            self.plan, batch_size=self.batch_size, global_batch_size=None
        )


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """Where a run ends: at the first limit that an update reaches; at least one is given.

    A limit of 0 means: run every extra once, then end.
    """

    epochs: int | None = None
    """Epochs of the main plan."""

    updates: int | None = None
    """Updates: steps of the main plan, or groups of ``accumulate`` of them."""

    samples: int | None = None
    """Samples of the main plan, counted as `Interleaved.samples_of` says."""

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in self.__struct_fields__}
        if all(value is None for value in limits.values()):
            raise PlanError("limits take at least one of epochs=, updates=, samples=; got none")
        for name, value in limits.items():
            if value is not None:
                check_integer(f"limits {name}", value, 0, 2**63, PlanError)


class Interleaved(Described, frozen=True, kw_only=True, tag="Interleaved"):
    """A main plan, and extras that run as a whole between its steps.

    The stream runs until its limits, in one pass.  Extras that fall due together run in their
    sequence, each to its end; those that fall due at the last update run before the end.

    Example:
        >>> plan = Interleaved(
        ...     train=Shuffled(batch_size=4),
        ...     extras={"val": Every(Sequential(batch_size=8), epochs=1)},
        ...     limits=Limits(epochs=2),
        ... )
        >>> plan.extras["val"].epochs
        1
    """

    NOT_IN_DIGEST: ClassVar[frozenset[str]] = frozenset({"limits"})

    train: SinglePlan | Chain
    """The main plan."""

    limits: Limits
    """Where the run ends; not part of the digest, so that a run can be prolonged."""

    extras: dict[str, Every] = msgspec.field(default_factory=dict)
    """The extras by name, in their sequence."""

    samples_of: Literal["all", "rank"] = "all"
    """Whose samples intervals and limits count: those of ``"all"`` ranks without fillers, or each
    batch entry of one ``"rank"`` (as noether does)."""

    accumulate: int = 1
    """Steps that make one update (gradient accumulation); the end of an epoch completes one."""

    def __post_init__(self) -> None:
        if not isinstance(self.train, SinglePlan | Chain | Drawn):
            raise PlanError(
                f"train={self.train!r} is no plan to run as the main one: "
                f"{_hint(self.train, 'Chain, ')}"
            )
        if not isinstance(self.limits, Limits):
            raise PlanError(f"limits={self.limits!r} must be Limits(epochs=, updates=, samples=)")
        if self.extras:
            _check_names("extras", self.extras)
        for name, extra in self.extras.items():
            if not isinstance(extra, Every):
                raise PlanError(f"extras[{name!r}]={extra!r} must be Every(plan, epochs=…)")
        for name in {"train", *(self.train.plans if isinstance(self.train, Chain) else ())}:
            if name in self.extras:
                raise PlanError(f"extras[{name!r}]: that name is taken by the main plan")
        check_choice("samples_of", self.samples_of, ("all", "rank"), PlanError)
        check_integer("accumulate", self.accumulate, 1, 2**31, PlanError)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def is_local(self) -> bool:
        """Whether a part holds objects of this process."""
        return self.train.is_local or any(every.plan.is_local for every in self.extras.values())

    @property
    def sources(self) -> dict[str, Source]:
        """The sources of extras, and of links of a main chain, that have their own, by name."""
        return self.train.sources | _sources(self.extras)

    def over(self, sources: Mapping[str, Source]) -> Self:
        """Return the plan with a source of its own for each extra that is named.

        Raises:
            PlanError: If there is no extra of a name.
        """
        return msgspec.structs.replace(self, extras=_over(self.extras, sources))

    def with_sources(self, change: Callable[[Source], Source]) -> Self:
        """Return the plan with another source for each part that has its own."""
        extras = _with_sources(self.extras, change)
        return msgspec.structs.replace(self, train=self.train.with_sources(change), extras=extras)

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .interleave import InterleavedProgram

        return InterleavedProgram(self, data)


Plan = SinglePlan | Chain | Interleaved
"""All plans that travel over the wire and stand in a configuration, told apart by ``type``."""


def parts_of(plan: object) -> tuple[str, ...]:
    """Return the names of the streams that a plan makes, the main one first; none for a single."""
    if isinstance(plan, Chain):
        return tuple(plan.plans)
    if isinstance(plan, Interleaved):
        return (*(parts_of(plan.train) or ("train",)), *plan.extras)
    return ()


def _check_single(name: str, plan: object) -> None:
    if not isinstance(plan, SinglePlan | Drawn):
        raise PlanError(f"{name}={plan!r} is no plan over one order: {_hint(plan)}")


def _hint(plan: object, others: str = "") -> str:
    if isinstance(plan, FromSampler):
        return "in a composition give Drawn(sampler=…, batch_size=…) in its place"
    return (
        f"give {others}Sequential, Shuffled, ShardShuffled, ByteBudget, MultiScale, VariableBatch "
        "or VideoVariable"
    )


def _check_names(field: str, plans: object) -> None:
    if not isinstance(plans, dict) or not 1 <= len(plans) <= 256:
        raise PlanError(f"{field}={plans!r} must be a dict of 1..256 plans by name")
    for name in plans:
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= 64:
            raise PlanError(f"{field} name {name!r} is out of range: it must have 1..64 bytes")


_Part = TypeVar("_Part", Link, Every)


def _sources(parts: dict[str, _Part]) -> dict[str, Source]:
    return {name: part.source for name, part in parts.items() if part.source is not None}


def _over(parts: dict[str, _Part], sources: Mapping[str, Source]) -> dict[str, _Part]:
    for name in sources:
        if name not in parts:
            raise PlanError(
                f"sources[{name!r}]: the plan has no part of that name; its parts: "
                f"{', '.join(parts) or 'none'}"
            )
    return {
        name: msgspec.structs.replace(part, source=sources.get(name, part.source))
        for name, part in parts.items()
    }


def _with_sources(parts: dict[str, _Part], change: Callable[[Source], Source]) -> dict[str, _Part]:
    return {
        name: part
        if part.source is None
        else msgspec.structs.replace(part, source=change(part.source))
        for name, part in parts.items()
    }


def _source(source: object) -> object:
    if source is None:
        return None
    # Sources hold streams, which hold plans: they cannot be imported above.
    from ..sources import Source, typed

    if isinstance(source, dict):
        return msgspec.convert(typed({"source": source})["source"], Source)
    if not isinstance(source, Source):
        raise PlanError(f"source={source!r} is no source: use Objects(uri) or Shards(uri)")
    return source
