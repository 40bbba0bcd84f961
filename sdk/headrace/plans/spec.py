"""The public plans over one order, in batches of a fixed size or up to a budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ..checks import check_choice, check_flag, check_integer, check_number
from ..errors import PlanError
from .base import ORDERS, FixedBatches, Ordered, OrderName, Slice, check_order
from .cut import TAILS, Tail

if TYPE_CHECKING:
    from .data import Data
    from .program import Program

__all__ = ["ByteBudget", "Sequential", "ShardShuffled", "Shuffled", "Slice"]


class Sequential(FixedBatches, frozen=True, kw_only=True, tag="Sequential"):
    """The order of the manifest, the same in each epoch.

    Example:
        >>> Sequential(batch_size=32).tail
        'short'
    """

    shards: Slice | None = None
    """Take only these shards of the source, each of them whole: ``Slice(0, 200)``, or
    ``Slice(1, None, 4)`` for every fourth from the second on; all by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards is None:
            return
        if not isinstance(self.shards, Slice):
            raise PlanError(f"shards={self.shards!r} must be Slice(start, stop, step)")
        refuse_slots(
            self, f"shards={self.shards!r}, whose unit is the shard: leave one of them out"
        )

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .flat import fixed_program, slice_program

        if self.shards is not None:
            return slice_program(self, self.shards, data, role=role)
        return fixed_program(self, data, "sequential", seed=0, role=role)


class Shuffled(FixedBatches, frozen=True, kw_only=True, tag="Shuffled"):
    """A new pseudo-random order of all samples in each epoch.

    Example:
        >>> Shuffled(global_batch_size=256, seed=17).order
        'keyed'
    """

    seed: int = 0
    """``0 <= seed < 2**64``; together with the epoch it determines the order."""

    order: Literal["keyed", "torch", "torch-continued", "python"] = "keyed"
    """Which permutation.

    ``"keyed"``: computed, not stored (`headrace.plans.order.KeyedOrder`): any length, O(1) memory.
    ``"torch"``: ``torch.randperm`` of a generator seeded with ``seed + epoch``.
    ``"torch-continued"``: the same of a generator seeded once with `seed`, which goes on from
    epoch to epoch.  ``"python"``: ``random.Random(seed + epoch).shuffle``.
    The exact ones need O(n) time and memory for each epoch and refuse more than
    `headrace.plans.exact.MAX_EXACT` samples.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, self.seed, allowed=ORDERS[1:])

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .flat import fixed_program

        return fixed_program(self, data, self.order, seed=self.seed, role=role)


class ShardShuffled(FixedBatches, frozen=True, kw_only=True, tag="ShardShuffled"):
    """Shards in a new pseudo-random order in each epoch, and samples shuffled within a window.

    For sources that read best in long runs.  The samples of the shards, in the order of the epoch,
    form a sequence; each piece of `window` entries of it is permuted by itself.  The order is
    computed: O(number of shards) memory, any position in O(log(number of shards)).
    """

    seed: int = 0
    """``0 <= seed < 2**64``."""

    window: int = 10_000
    """Samples that are shuffled among each other; 1 keeps the order within the shards."""

    samples_per_shard: int | None = None
    """Take runs of so many consecutive samples as shards, whatever the source calls a shard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, 0, 2**64, PlanError)
        check_integer("window", self.window, 1, 2**31, PlanError)
        if self.samples_per_shard is not None:
            check_integer("samples_per_shard", self.samples_per_shard, 1, 2**63, PlanError)
        refuse_slots(self, "ShardShuffled, whose unit is the shard: use Shuffled, or leave it out")

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .flat import shard_program

        return shard_program(self, data, role=role)


def refuse_slots(plan: Ordered, what: str) -> None:
    """Refuse modifiers that act on samples before they are ordered.

    Args:
        plan: Whose modifiers.
        what: What they do not go with, and what to do, for the message.
    """
    for name in ("subset", "node_blocks", "pad_to"):
        if getattr(plan, name) not in (None, 1):
            raise PlanError(f"{name}={getattr(plan, name)!r} does not go with {what}")


class ByteBudget(Ordered, frozen=True, kw_only=True, tag="ByteBudget"):
    """As many samples in a batch as fit into a budget: of bytes, or of any numeric column.

    The order is packed greedily: a sample that does not fit opens the next batch, and an exact fill
    closes a batch at once.  Batches are packed for all ranks together and dealt one by one, so that
    all ranks have the same number of steps; the cursor counts dealt batches.

    Example:
        >>> ByteBudget(max_bytes=1 << 20, order="sequential").tail
        'wrap'
    """

    max_bytes: int | float | None = None
    """Bytes of a batch at most.  Exactly one of `max_bytes` and `max_total` is given."""

    max_total: int | float | None = None
    """Sum of `column` over a batch at most; may be fractional, as may be the column."""

    column: str = "sizes"
    """The column whose sum `max_total` limits."""

    oversized: Literal["error", "own", "drop"] = "error"
    """What a sample above the budget does: ``"error"`` refuses the data; ``"own"`` gives it a batch
    of its own at once, before the one that is being filled; ``"drop"`` leaves it out."""

    zero: Literal["keep", "drop"] = "keep"
    """Whether samples of weight 0 are delivered (aistore's sampler leaves them out)."""

    drop_last: bool = False
    """Whether the last batch of an epoch, which nothing closed, is left out unless it is filled
    *above* `saturation_factor`."""

    saturation_factor: float = 0.8
    """``0 <= saturation_factor <= 1``; at 1 the last batch is always left out, at 0 never."""

    tail: Tail = "wrap"
    """What becomes of the last batches of an epoch where the ranks do not divide them: ``"wrap"``
    deals the first batches of the epoch once more, as fillers; ``"short"`` gives the ranks without
    a batch an empty one; ``"drop"`` leaves them out."""

    seed: int = 0
    """``0 <= seed < 2**64``."""

    order: OrderName = "keyed"
    """As for `Shuffled`, or ``"sequential"``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {
            name: getattr(self, name)
            for name in ("max_bytes", "max_total")
            if getattr(self, name) is not None
        }
        if len(given) != 1:
            raise PlanError(
                "a budget takes exactly one of max_bytes= and max_total= (with column=); got "
                f"{given or 'neither'}"
            )
        ((name, value),) = given.items()
        check_number(name, value, 0, math.nextafter(math.inf, 0), PlanError, above=True)
        if not isinstance(self.column, str) or not self.column:
            raise PlanError(f"column={self.column!r} is no name of a column")
        if self.max_bytes is not None and self.column != "sizes":
            raise PlanError(
                f"column={self.column!r} goes with max_total=: max_bytes= counts the sizes"
            )
        check_choice("oversized", self.oversized, ("error", "own", "drop"), PlanError)
        check_choice("zero", self.zero, ("keep", "drop"), PlanError)
        check_flag("drop_last", self.drop_last, PlanError)
        check_number("saturation_factor", self.saturation_factor, 0, 1, PlanError)
        check_choice("tail", self.tail, TAILS[:3], PlanError)
        check_order(self.order, self.seed)
        if self.node_blocks > 1:
            raise PlanError(
                f"node_blocks={self.node_blocks} does not go with ByteBudget: batches are packed "
                "over the whole order and dealt to all ranks"
            )

    @property
    def budget(self) -> int | float:
        """The limit of a batch, whichever way it was given."""
        limit = self.max_bytes if self.max_bytes is not None else self.max_total
        assert limit is not None
        return limit

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .budget import BudgetProgram

        return BudgetProgram(self, data, role=role)
