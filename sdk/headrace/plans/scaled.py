"""The public plans whose steps have an image size, frames, or a batch size of their own.

All samples of a step have the same size on all ranks.  What a step has is a row of a table, which
is a pure function of the epoch; which row is picked by a chooser, a pure function of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Self

import msgspec

from ..checks import check_choice, check_flag, check_integer, check_number
from ..errors import PlanError
from .base import FixedBatches, OrderName, check_order
from .cut import Tail  # noqa: TC001 - msgspec reads the annotations of its structs

if TYPE_CHECKING:
    from .data import Data
    from .program import Program

MAX_SIDE: Final = 2**16

Pairing = Literal["position", "head", "v0.3"]
PAIRINGS: Final = ("position", "head", "v0.3")


class Scales(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The image sizes of a table: a grid of heights and widths, and the base size; in pixels.

    Each value is rounded to the nearest multiple of `divisor`, halves up, never more than 10 %
    down.

    Example:
        >>> Scales().count
        5
        >>> Scales.one(224, 224).max_width
        224
    """

    height: int = 256
    """Height of the base size, to which the batch size belongs."""

    width: int = 256
    """Width of the base size."""

    min_height: int = 160
    """Smallest height of the grid."""

    max_height: int = 320
    """Largest height of the grid."""

    min_width: int = 160
    """Smallest width of the grid."""

    max_width: int = 320
    """Largest width of the grid."""

    count: int = 5
    """Points of the grid between the smallest and the largest; the base size comes on top."""

    divisor: int = 32
    """Heights and widths are multiples of this."""

    pairing: Pairing = "position"
    """How heights and widths become sizes: ``"position"`` pairs the grids point by point and adds
    the base size as one; ``"head"`` and ``"v0.3"`` are what two releases of cvnets do, where the
    base size can be torn apart or lost unless height and width have the same settings."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "min_height", "max_height", "min_width", "max_width"):
            check_integer(name, getattr(self, name), 1, MAX_SIDE, PlanError)
        check_integer("count", self.count, 1, 1025, PlanError)
        check_integer("divisor", self.divisor, 1, MAX_SIDE, PlanError)
        check_choice("pairing", self.pairing, PAIRINGS, PlanError)
        for side in ("height", "width"):
            low, high = getattr(self, f"min_{side}"), getattr(self, f"max_{side}")
            if low > high:
                raise PlanError(
                    f"min_{side}={low} is above max_{side}={high}: it must be at most that"
                )

    @classmethod
    def one(cls, height: int, width: int) -> Self:
        """Return the table with a single size, taken as it is (SSc-FBS)."""
        return cls(
            height=height,
            width=width,
            min_height=height,
            max_height=height,
            min_width=width,
            max_width=width,
            count=1,
            divisor=1,
        )


class Growth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Larger scales as the run goes on: a pure function of the epoch.

    For each of the epochs that is reached, in ascending order, the smallest sides grow by
    ``int(side * min_factor)`` and the largest by ``int(side * max_factor)``.
    """

    epochs: tuple[int, ...] = (40,)
    """Epochs from which on it is one step more."""

    min_factor: float = 1.0
    """What the smallest sides grow by, ``0 <= min_factor <= 100``; at 1 they double."""

    max_factor: float = 1.0
    """What the largest sides grow by, ``0 <= max_factor <= 100``; at 1 they double."""

    def __post_init__(self) -> None:
        if not isinstance(self.epochs, tuple | list):
            raise PlanError(f"epochs={self.epochs!r} must be a tuple of epochs")
        for epoch in self.epochs:
            check_integer("epochs entry", epoch, 0, 2**63, PlanError)
        if len(self.epochs) > 64:
            raise PlanError(
                f"epochs={len(self.epochs)} entries is out of range: give at most 64 epochs"
            )
        msgspec.structs.force_setattr(self, "epochs", tuple(sorted(set(self.epochs))))
        check_number("min_factor", self.min_factor, 0, 100, PlanError)
        check_number("max_factor", self.max_factor, 0, 100, PlanError)


Chooser = Literal["counter", "cvnets"]


class ScaledBatches(FixedBatches, frozen=True, kw_only=True):
    """What all plans with a table of sizes share."""

    scales: Scales = Scales()
    """The sizes."""

    scale_growth: Growth | None = None
    """Growth of the sizes from epoch to epoch; None: always the same."""

    chooser: Chooser = "counter"
    """Who picks the row of a step: ``"counter"``: a hash of seed, epoch and step, in O(1);
    ``"cvnets"``: ``random.Random(seed + epoch)``, after the shuffle of ``order="python"``, one draw
    for each step."""

    seed: int = 0
    """``0 <= seed < 2**64``; for the order and the chooser."""

    order: OrderName = "keyed"
    """As for `Shuffled`, or ``"sequential"``."""

    tail: Tail = "wrap"
    """As for all plans; here the last step is filled up by default, so that it has the batch size
    that belongs to its image size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.scales, Scales):
            raise PlanError(f"scales={self.scales!r} must be Scales(…) or Scales.one(…)")
        if self.scale_growth is not None and not isinstance(self.scale_growth, Growth):
            raise PlanError(f"scale_growth={self.scale_growth!r} must be Growth(…)")
        check_choice("chooser", self.chooser, ("counter", "cvnets"), PlanError)
        check_order(self.order, self.seed)

    def evaluation(self) -> Self:
        """Return the plan for evaluation: the base size alone, in order, nothing twice."""
        return msgspec.structs.replace(
            self,
            scales=base_only(self.scales),
            scale_growth=None,
            order="sequential",
            tail="short",
            reverse=False,
            repeats=1,
            truncate=False,
        )

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .flat import scaled_program

        return scaled_program(self, data, role=role)


class MultiScale(ScaledBatches, frozen=True, kw_only=True, tag="MultiScale"):
    """A size of its own for each step, the same batch size for all (MSc-FBS).

    With a single scale it is the plain batch sampler with a size (SSc-FBS).
    """


class VariableBatch(ScaledBatches, frozen=True, kw_only=True, tag="VariableBatch"):
    """A size of its own for each step, and so many samples that the pixels stay the same (MSc-VBS).

    A size of h × w has ``batch_size * H * W / (h * w)`` samples per rank, at least one, where H × W
    is the reference; the quotient is rounded to two decimals, then down.
    """

    reference: Literal["base", "largest"] = "base"
    """The size to which the batch size belongs: ``"base"``: that of `scales`; ``"largest"``: the
    largest of the table, as in the paper: no step has more pixels than a batch of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reference", self.reference, ("base", "largest"), PlanError)


class VideoVariable(ScaledBatches, frozen=True, kw_only=True, tag="VideoVariable"):
    """A size, a number of frames and a number of clips for each step.

    By default the batch size stays and a larger size has fewer frames.
    """

    frames: int = 8
    """Frames of a clip at the base size."""

    clips: int = 1
    """Clips of a video."""

    random_clips: bool = False
    """Whether each step draws its clips between `min_clips` and `max_clips`."""

    min_clips: int = 1
    """Fewest clips that a step draws."""

    max_clips: int = 5
    """Most clips that a step draws."""

    vary: Literal["frames", "batch", "nothing"] = "frames"
    """What makes up for the size: ``"frames"``, the ``"batch"`` size, or ``"nothing"`` (the plain
    video batch sampler)."""

    clip_law: Literal["budget", "cvnets"] = "budget"
    """What drawn clips do to the batch size: ``"budget"``: ``batch_size * clips / drawn``, rounded
    like the table, at least 1; ``"cvnets"``: never below `batch_size`, an integer multiple of it
    where `clips` is at least twice the drawn ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("frames", self.frames, 1, 2**20, PlanError)
        for name in ("clips", "min_clips", "max_clips"):
            check_integer(name, getattr(self, name), 1, 2**16, PlanError)
        check_flag("random_clips", self.random_clips, PlanError)
        if self.min_clips > self.max_clips:
            raise PlanError(
                f"min_clips={self.min_clips} is above max_clips={self.max_clips}: it must be at "
                "most that"
            )
        check_choice("vary", self.vary, ("frames", "batch", "nothing"), PlanError)
        check_choice("clip_law", self.clip_law, ("budget", "cvnets"), PlanError)

    def evaluation(self) -> Self:
        """Return the plan for evaluation: the base size alone, in order, nothing twice."""
        return msgspec.structs.replace(super().evaluation(), random_clips=False)


def base_only(scales: Scales) -> Scales:
    """Return the table of the base size alone."""
    return msgspec.structs.replace(Scales.one(scales.height, scales.width), pairing=scales.pairing)
