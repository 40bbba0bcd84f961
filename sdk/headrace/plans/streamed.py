"""Plans over shards that are streamed: nothing is known of the samples before they are read.

The order is that of the same plan over indexed shards: shards in the order of the epoch, samples in
the order of their archives, permuted within windows of that sequence.  What is computed here is
which shard stands where and how a window is permuted; `headrace.plans.cutter` cuts the samples into
steps as they come.  A place says where in which shard the sequence goes on (`Spot`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import numpy as np

from ..checks import check_integer
from ..errors import CursorError, PlanError
from .base import Described
from .order import KeyedOrder, permute, round_keys
from .program import Place, Program
from .shards import SHARDS_LABEL, WINDOW_LABEL
from .spec import Sequential, ShardShuffled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cursor import Seek
    from .cut import Tail
    from .data import Data
    from .order import Indices
    from .program import Share

UNKNOWN: Final = -1
"""Steps of an epoch that ends where the data ends."""

SAMPLE_BITS: Final = 22
"""Bits of the number of a sample within its shard in an index: a shard has 2^22 members at most."""

# Options that need the samples, and what they are where they do nothing.
_REFUSED: Final = {
    "subset": None,
    "pad_to": 1,
    "node_blocks": 1,
    "reverse": False,
    "repeats": 1,
    "truncate": False,
    "part": None,
    "shards": None,
}


def sample_index(row: int, number: int) -> int:
    """Return the index that names a sample of a streamed source.

    Args:
        row: The shard, by its place in the manifest.
        number: The sample, by its place in the shard.
    """
    return row << SAMPLE_BITS | number


class StreamedPlan(Described, frozen=True, kw_only=True, tag="Streamed"):
    """A plan and all that decides what its entries are when its shards are streamed."""

    plan: Sequential | ShardShuffled
    """The plan, as the user gave it."""

    fields: tuple[str, ...]
    """As `Shards.fields`: what has none of them is no sample."""

    missing: Literal["error", "none", "empty"] = "error"
    """As `Shards.missing`."""

    lowercase: bool = True
    """As `Shards.lowercase`."""

    steps_per_epoch: int | None = None
    """As `Stream.steps_per_epoch`."""

    def __post_init__(self) -> None:
        for name, default in _REFUSED.items():
            value = getattr(self.plan, name, default)
            if value != default:
                raise PlanError(
                    f"{name}={value!r} has to know all samples beforehand, and the shards are "
                    "streamed: leave it out, or index the shards (plain .tar, without index=False)"
                )
        if isinstance(self.plan, ShardShuffled) and self.plan.samples_per_shard is not None:
            raise PlanError(
                f"samples_per_shard={self.plan.samples_per_shard} does not go with shards that are "
                "streamed, each of which is read as a whole: leave it out"
            )

    def __repr__(self) -> str:
        return f"{self.plan!r} over streamed shards"

    def canonical(self) -> dict[str, Any]:
        """Return the fields that the digest covers: those of the plan, and these."""
        facts = super().canonical()
        del facts["type"], facts["plan"]
        return {**self.plan.canonical(), **facts}

    def program(self, data: Data, *, role: int = 0) -> StreamedProgram:
        """Return what executes this plan over some shards, of which `data` has the number."""
        return StreamedProgram(self, data.length)


class Spot(NamedTuple):
    """Where in the sequence of the samples of an epoch a place is; what a cursor has in `child`."""

    lap: int = 0
    """How many times the sequence has ended before."""

    shard: int = 0
    """Place of a shard in the order of the epoch: that in which the window begins."""

    sample: int = 0
    """Sample of that shard with which it begins; as many as the shard has: with what follows it."""

    place: int = 0
    """Entries of this lap before the window."""

    inside: int = 0
    """Entries of the window that are consumed."""

    @classmethod
    def of(cls, place: Place) -> Self:
        """Return the spot of a place."""
        return cls() if place.child is None else cls(**place.child)


class StreamedProgram(Program):
    """Says what can be said of streamed shards before they are read.

    Args:
        plan: The plan.
        num_shards: How many there are.
    """

    def __init__(self, plan: StreamedPlan, num_shards: int) -> None:
        self.plan = plan
        self.num_shards = num_shards
        self.cut = plan.plan.cut()
        self.tail: Tail = self.cut.tail
        self.steps_per_epoch = plan.steps_per_epoch
        shuffled = plan.plan if isinstance(plan.plan, ShardShuffled) else None
        self.window = 1 if shuffled is None else shuffled.window
        self._seed = None if shuffled is None else shuffled.seed

    # ---- what follows from the plan alone ------------------------------------------------------

    def shards(self, epoch: int) -> Indices:
        """Return the shards in the order of an epoch, u64[S]: their places in the manifest."""
        rows = np.arange(self.num_shards, dtype=np.uint64)
        if self._seed is None:
            return rows
        return KeyedOrder(self.num_shards, self._seed, label=SHARDS_LABEL).at(epoch, rows)

    def permuted(self, epoch: int, number: int, length: int) -> Indices:
        """Return which place of a window each of its entries is, u64[length].

        Args:
            epoch: Epoch.
            number: Windows of the sequence before it.
            length: Entries of it; the last window of a sequence has fewer.
        """
        inside = np.arange(length, dtype=np.uint64)
        if length == 1 or self._seed is None:
            return inside
        keys = round_keys(self._seed, epoch, label=WINDOW_LABEL)
        return permute(inside, length, keys, tweak=np.full(length, number, dtype=np.uint64))

    def ranks(self, world_size: int) -> int:
        """Return the ranks that share each step.

        Raises:
            PlanError: If there are several and an epoch has no declared number of steps.
        """
        if self.plan.plan.replicated or world_size == 1:
            return 1
        if self.steps_per_epoch is None:
            raise PlanError(
                f"world_size={world_size} needs to know how many steps an epoch has, or ranks "
                "would wait for each other at its end, and the shards are streamed: give Stream(…, "
                "steps_per_epoch=…), or index the shards (plain .tar, without index=False)"
            )
        return world_size

    def step_entries(self, world_size: int) -> int:
        """Return the entries that a step of all ranks consumes."""
        return self.cut.step_size(self.ranks(world_size))

    def batch_samples(self, world_size: int) -> int:
        """Return the samples of a whole batch of a rank."""
        return self.cut.rank_size(self.ranks(world_size))

    # ---- places --------------------------------------------------------------------------------

    def steps(self, epoch: int, world_size: int) -> int:
        """Return the steps of an epoch; `UNKNOWN` where it ends with the data."""
        self.batch_samples(world_size)
        return UNKNOWN if self.steps_per_epoch is None else self.steps_per_epoch

    def samples(self, epoch: int, world_size: int) -> int:
        """Return the samples that all ranks together get in an epoch; `UNKNOWN` likewise."""
        steps = self.steps(epoch, world_size)
        return steps if steps == UNKNOWN else steps * self.step_entries(world_size)

    def settle(self, place: Place, world_size: int) -> Place:
        """Return the canonical form of a place."""
        steps = self.steps(place.epoch, world_size)
        return place if steps == UNKNOWN or place.step < steps else self.following(place)

    def following(self, place: Place) -> Place:
        """Return the start of the next epoch, where a place is the end of its own."""
        return Place(place.epoch + 1, 0, 0, place.update, place.sample)

    def remaining(self, place: Place, world_size: int) -> int:
        """Return the steps that are left of the epoch; `UNKNOWN` where it ends with the data."""
        steps = self.steps(place.epoch, world_size)
        return steps if steps == UNKNOWN else steps - place.step

    def has_steps(self, place: Place, world_size: int) -> bool:
        """Return whether a step is left of the epoch, as far as that is known."""
        return self.remaining(place, world_size) != 0

    def seek(self, where: Seek, world_size: int) -> Place:
        """Return the place of a `Seek`: the start of an epoch.

        Updates and samples count from there where epochs have no declared number of steps.

        Raises:
            CursorError: If it lies within an epoch, or that is not known.
        """
        steps, samples = self.steps(0, world_size), self.samples(0, world_size)
        if where.epoch is not None:
            counted = 0 if steps == UNKNOWN else where.epoch
            return Place(where.epoch, 0, 0, counted * steps, counted * samples)
        name, count, each = (
            ("update", where.update, steps)
            if where.update is not None
            else ("sample", where.sample, samples)
        )
        assert count is not None
        epoch, rest = (0, count) if each == UNKNOWN else divmod(count, each)
        if rest:
            edges = "only 0 is known to be one"
            if each != UNKNOWN:
                edges = f"the nearest are {count - rest} and {count - rest + each}"
            raise CursorError(
                f"seek {name}={count} is not the start of an epoch ({edges}), and streamed shards "
                "are read from there: seek an epoch, or load a state, which stands anywhere"
            )
        return self.seek(where.__class__(epoch=epoch), world_size)

    def check(self, place: Place) -> None:
        """Refuse a place that is none of these shards."""
        if place.child is None:
            if place.position or place.step:
                raise CursorError(
                    f"cursor position={place.position} does not say in which shard it is (child): "
                    "it was not made by a stream of streamed shards; start anew with seek()"
                )
            return
        child = place.child
        if set(child) != set(Spot._fields) or not all(
            isinstance(value, int) and 0 <= value < 2**63 for value in child.values()
        ):
            raise CursorError(
                f"cursor child={dict(child)!r} is no place in streamed shards: it has "
                f"{', '.join(Spot._fields)}"
            )
        spot = Spot(**child)
        for name, value, limit in (
            ("shard", spot.shard, self.num_shards),
            ("inside", spot.inside, self.window),
        ):
            check_integer(f"cursor child {name}", value, 0, limit, CursorError)
        if spot.place % self.window:
            raise CursorError(
                f"cursor child place={spot.place} is no multiple of window={self.window}: windows "
                "begin there"
            )

    # ---- what only reading tells ---------------------------------------------------------------

    def advance(self, place: Place, world_size: int, steps: int) -> Place:
        """Return a place for no steps; nobody knows any other one."""
        if steps:
            raise _unknown()
        return place

    def shares(
        self, place: Place, rank: int, world_size: int, *, max_batches: int, stride: int = 1
    ) -> list[Share]:
        """Raise: what follows is read, not computed."""
        raise _unknown()


def child_of(spot: Spot) -> Mapping[str, int]:
    """Return a spot as a cursor has it."""
    return spot._asdict()


def _unknown() -> PlanError:
    return PlanError(
        "which samples come where is known only while streamed shards are read: index them (plain "
        ".tar, without index=False)"
    )
