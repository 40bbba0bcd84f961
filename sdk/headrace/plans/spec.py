"""The public plans: what is read and in which order, as frozen and validated values.

A plan knows nothing of the data.  Bound to a length and a manifest digest it becomes a
`headrace.plans.engine.BoundPlan`, which is executed.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from ..checks import check_integer
from ..errors import PlanError
from .cut import FixedCut, Tail
from .order import KeyedOrder, SequentialOrder


class FixedBatches(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    repr_omit_defaults=True,
):
    """What all plans with batches of a fixed size share.

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
    filled up from the start of the order.  Fillers carry the flag ``padding``.
    """

    def __post_init__(self) -> None:
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
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields, in hex; world size and limits excluded."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Sequential(FixedBatches, frozen=True, kw_only=True, tag="Sequential"):
    """The order of the manifest, the same in each epoch.

    Example:
        >>> Sequential(batch_size=32).tail
        'short'
    """

    def make_order(self, length: int) -> SequentialOrder:
        """Return the identity over `length` samples."""
        return SequentialOrder(length)


class Shuffled(FixedBatches, frozen=True, kw_only=True, tag="Shuffled"):
    """A new pseudo-random order of all samples in each epoch.

    Example:
        >>> Shuffled(global_batch_size=256, seed=17).order
        'keyed'
    """

    seed: int = 0
    """``0 <= seed < 2**64``; together with the epoch it determines the order."""

    order: Literal["keyed"] = "keyed"
    """``"keyed"``: a computed permutation (`headrace.plans.order.KeyedOrder`), O(1) in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, 0, 2**64, PlanError)
        if self.order != "keyed":
            raise PlanError(f"order={self.order!r} is unknown: choose 'keyed'")

    def make_order(self, length: int) -> KeyedOrder:
        """Return the keyed permutation of `length` samples."""
        return KeyedOrder(length, self.seed)


Plan = Sequential | Shuffled
"""All plans that travel over the wire and stand in a configuration, told apart by ``type``."""
