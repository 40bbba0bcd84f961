"""Tables of sizes, who picks a row for a step, and the sizes of steps that follow.

A table is a pure function of the epoch, a choice one of (seed, epoch, step).  Sums over many steps
are kept at every `_BLOCK`-th step, so that a step deep in an epoch is found without listing all
before it again.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from .exact import ExactOrder, below, python_generator
from .order import mix
from .scaled import MultiScale, Scales, VariableBatch, VideoVariable

if TYPE_CHECKING:
    import random

    from numpy.typing import NDArray

    from .order import Order
    from .scaled import Growth, ScaledBatches

SCALE_LABEL: Final = b"headrace.scale.v1"
_BLOCK: Final = 4096
"""Steps whose choices are made in one go."""

_KEPT_BLOCKS: Final = 16
_KEPT_EPOCHS: Final = 4


# ---- tables --------------------------------------------------------------------------------------


def round_to(value: float, divisor: int) -> int:
    """Return the nearest multiple, halves up, at least `divisor`, never more than 10 % down.

    Example:
        >>> [round_to(value, 32) for value in (47, 100, 160, 300)]
        [64, 96, 160, 288]
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * value:
        rounded += divisor
    return rounded


def grid(low: int, high: int, count: int) -> list[float]:
    """Return `count` evenly spaced numbers, the last one exactly `high`; one of them is `low`."""
    if count == 1:
        return [float(low)]
    step = (high - low) / (count - 1)
    return [*(low + number * step for number in range(count - 1)), float(high)]


def sides(scales: Scales) -> list[tuple[int, int]]:
    """Return the sizes (height, width) of a table: ascending, each once."""
    heights = grid(scales.min_height, scales.max_height, scales.count)
    widths = grid(scales.min_width, scales.max_width, scales.count)
    base = (scales.height, scales.width)

    def rounded(values: list[float]) -> list[int]:
        return [round_to(value, scales.divisor) for value in values]

    if scales.pairing == "head":
        tall = sorted(rounded(list({*heights, float(base[0])})))
        wide = sorted(rounded(list({*widths, float(base[1])})))
        pairs = list(zip(tall, wide, strict=False))
    elif scales.pairing == "v0.3":
        heights += [base[0]] if base[0] not in heights else []
        widths += [base[1]] if base[1] not in widths else []
        pairs = list(zip(rounded(heights), rounded(widths), strict=False))
    else:
        pairs = list(zip(rounded(heights), rounded(widths), strict=True))
        pairs.append((round_to(base[0], scales.divisor), round_to(base[1], scales.divisor)))
    return sorted(set(pairs))


def law(budget: int, size: int) -> int:
    """Return how many times a size fits into a budget: two decimals, then down, at least 1."""
    return max(1, int(round(budget / size, 2)))


def stage_of(growth: Growth | None, epoch: int) -> int:
    """Return how often the scales have grown when an epoch begins."""
    return 0 if growth is None else bisect_right(growth.epochs, epoch)


def grown(scales: Scales, growth: Growth | None, stage: int) -> Scales:
    """Return the scales after they have grown `stage` times."""
    for _ in range(stage):
        assert growth is not None
        low, high = growth.min_factor, growth.max_factor
        scales = Scales(
            height=scales.height,
            width=scales.width,
            min_height=scales.min_height + int(scales.min_height * low),
            max_height=scales.max_height + int(scales.max_height * high),
            min_width=scales.min_width + int(scales.min_width * low),
            max_width=scales.max_width + int(scales.max_width * high),
            count=scales.count,
            divisor=scales.divisor,
            pairing=scales.pairing,
        )
    return scales


class Row(NamedTuple):
    """One line of a table."""

    height: int
    width: int
    batch: int
    """Samples per rank."""

    frames: int = 1


def image_rows(
    scales: Scales, batch_size: int, *, reference: str = "base"
) -> list[tuple[int, int, int]]:
    """Return the table (height, width, batch) of constant pixels: ascending, each row once."""
    sizes = sides(scales)
    tall, wide = (
        max(sizes, key=lambda size: size[0] * size[1])
        if reference == "largest"
        else (scales.height, scales.width)
    )
    return sorted({(h, w, law(tall * wide * batch_size, h * w)) for h, w in sizes})


def video_rows(scales: Scales, frames: int) -> list[tuple[int, int, int]]:
    """Return the table (height, width, frames) of constant pixels: ascending, each row once."""
    budget = scales.height * scales.width * frames
    return sorted({(h, w, law(budget, h * w)) for h, w in sides(scales)})


def table(plan: ScaledBatches, batch_size: int, stage: int = 0) -> list[Row]:
    """Return the rows that a step may have.

    Args:
        plan: The plan.
        batch_size: Samples per rank that belong to the reference size.
        stage: How often the scales have grown (see `stage_of`).
    """
    scales = grown(plan.scales, plan.scale_growth, stage)
    if isinstance(plan, VideoVariable):
        if plan.vary == "frames":
            return [Row(h, w, batch_size, f) for h, w, f in video_rows(scales, plan.frames)]
        if plan.vary == "batch":
            return [Row(h, w, b, plan.frames) for h, w, b in image_rows(scales, batch_size)]
        return [Row(h, w, batch_size, plan.frames) for h, w in sides(scales)]
    reference = plan.reference if isinstance(plan, VariableBatch) else "base"
    rows = image_rows(scales, batch_size, reference=reference)
    if isinstance(plan, MultiScale):
        # Rows that become equal are not merged: the original draws among all of them.
        return [Row(h, w, batch_size) for h, w, _ in rows]
    return [Row(h, w, b) for h, w, b in rows]


# ---- choosers ------------------------------------------------------------------------------------


class Chooser(Protocol):
    """Picks a row, and a number of clips, for each step."""

    def block(
        self, epoch: int, number: int, num_rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return rows i64[_BLOCK] of the steps from ``number * _BLOCK`` on, and their clips."""
        ...


class CounterChooser:
    """A hash of seed, epoch and step: any step in O(1), no state."""

    def __init__(self, seed: int, role: int, clips: tuple[int, int] | None) -> None:
        self._seed = seed
        self._role = role
        self._clips = clips

    def block(
        self, epoch: int, number: int, num_rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return the choices of a block of steps (see `Chooser`)."""
        context = b"".join(part.to_bytes(8, "big") for part in (self._seed, epoch, self._role, 0))
        digest = hashlib.blake2b(SCALE_LABEL + context).digest()
        row_key, clip_key = np.frombuffer(digest[:16], dtype=">u8").astype(np.uint64)
        steps = np.arange(number * _BLOCK, (number + 1) * _BLOCK, dtype=np.uint64)
        rows = _uniform(mix(steps ^ row_key), num_rows)
        if self._clips is None:
            return rows, None
        low, high = self._clips
        return rows, _uniform(mix(steps ^ clip_key), high - low + 1) + low


class ReplayChooser:
    """The draws of cvnets: one generator for the shuffle of an epoch, then for its choices.

    Args:
        seed: Seed of the plan; the generator is seeded with ``seed + epoch``.
        order: The shuffle that the generator made before the first choice; None for none.
        clips: Range of the clips that are drawn before each row; None for none.
    """

    def __init__(self, seed: int, order: ExactOrder | None, clips: tuple[int, int] | None) -> None:
        self._seed = seed
        self._order = order
        self._clips = clips
        # By epoch and rows: the generator, and the blocks that it has drawn so far.
        self._drawn: OrderedDict[tuple[int, int], tuple[random.Random, list[Any]]] = OrderedDict()
        self._lock = Lock()

    def block(
        self, epoch: int, number: int, num_rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return the choices of a block of steps; earlier ones are drawn first if need be."""
        with self._lock:
            key = (epoch, num_rows)
            if key not in self._drawn:
                generator = python_generator(self._seed + epoch)
                if self._order is not None:
                    generator.setstate(self._order.made(epoch).state)
                self._drawn[key] = (generator, [])
                while len(self._drawn) > _KEPT_EPOCHS:
                    self._drawn.popitem(last=False)
            generator, blocks = self._drawn[key]
            while len(blocks) <= number:
                blocks.append(self._draw(generator, num_rows))
            found: tuple[NDArray[np.int64], NDArray[np.int64] | None] = blocks[number]
            return found

    def _draw(
        self, generator: random.Random, num_rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        rows = np.empty(_BLOCK, dtype=np.int64)
        if self._clips is None:
            for step in range(_BLOCK):
                rows[step] = below(generator, num_rows)
            return rows, None
        clips = np.empty(_BLOCK, dtype=np.int64)
        low, high = self._clips
        for step in range(_BLOCK):
            clips[step] = low + below(generator, high - low + 1)
            rows[step] = below(generator, num_rows)
        return rows, clips


# ---- sizes ---------------------------------------------------------------------------------------


class _Block(NamedTuple):
    rows: NDArray[np.int64]
    clips: NDArray[np.int64] | None
    sums: NDArray[np.int64]
    """i64[_BLOCK + 1]: samples per rank of the steps of the block before each."""


class ScaledSizes:
    """Samples per rank of each step of a scaled plan (see `headrace.plans.cut.Sizes`)."""

    def __init__(self, plan: ScaledBatches, batch_size: int, chooser: Chooser) -> None:
        self._plan = plan
        self._batch_size = batch_size
        self._chooser = chooser
        self._video = plan if isinstance(plan, VideoVariable) else None
        self._blocks: OrderedDict[tuple[int, int], _Block] = OrderedDict()
        # By epoch: samples per rank before each block, as far as they are known.
        self._before: OrderedDict[int, list[int]] = OrderedDict()
        self._lock = Lock()
        self._tables = lru_cache(maxsize=None)(self._make_table)

    @property
    def largest(self) -> int:
        """The largest size of any epoch."""
        growth = self._plan.scale_growth
        stages = range(1 + (len(growth.epochs) if growth is not None else 0))
        return max(int(self._stage_table(stage)[1].max()) for stage in stages)

    def rows(self, epoch: int) -> list[Row]:
        """Return the table of an epoch."""
        return self._table(epoch)[0]

    def at(self, epoch: int, step: int) -> int:
        """Return the size of one step."""
        number, inside = divmod(step, _BLOCK)
        sums = self._block(epoch, number).sums
        return int(sums[inside + 1] - sums[inside])

    def many(self, epoch: int, step: int, count: int) -> NDArray[np.int64]:
        """Return the sizes of `count` steps from `step` on, i64[count]."""
        first, last = step // _BLOCK, -(-(step + count) // _BLOCK)
        blocks = [np.diff(self._block(epoch, number).sums) for number in range(first, last)]
        inside = step - first * _BLOCK
        sizes: NDArray[np.int64] = np.concatenate(blocks)[inside : inside + count]
        return sizes

    def total(self, epoch: int, step: int, count: int) -> int:
        """Return the sum of the sizes of `count` steps from `step` on."""
        return self._until(epoch, step + count) - self._until(epoch, step)

    def covering(self, epoch: int, step: int, samples: int) -> int:
        """Return how many steps from `step` on it takes to get at least `samples`."""
        wanted = self._until(epoch, step) + samples
        with self._lock:
            before = self._known(epoch)
            while before[-1] < wanted:
                block = self._block_unlocked(epoch, len(before) - 1)
                before.append(before[-1] + int(block.sums[-1]))
            number = max(0, bisect_left(before, wanted) - 1)
            sums = self._block_unlocked(epoch, number).sums
        inside = int(np.searchsorted(sums, wanted - before[number], side="left"))
        return number * _BLOCK + inside - step

    def meta(self, epoch: int, step: int) -> dict[str, Any]:
        """Return image size, and frames and clips of a video."""
        number, inside = divmod(step, _BLOCK)
        block = self._block(epoch, number)
        row = self._table(epoch)[0][int(block.rows[inside])]
        meta = {"height": row.height, "width": row.width}
        if self._video is not None:
            meta["frames"] = row.frames
            meta["clips"] = self._video.clips if block.clips is None else int(block.clips[inside])
        return meta

    def _until(self, epoch: int, step: int) -> int:
        number, inside = divmod(step, _BLOCK)
        with self._lock:
            before = self._known(epoch)
            while len(before) <= number:
                block = self._block_unlocked(epoch, len(before) - 1)
                before.append(before[-1] + int(block.sums[-1]))
            if not inside:
                return before[number]
            return before[number] + int(self._block_unlocked(epoch, number).sums[inside])

    def _known(self, epoch: int) -> list[int]:
        if epoch not in self._before:
            self._before[epoch] = [0]
            while len(self._before) > _KEPT_EPOCHS:
                self._before.popitem(last=False)
        return self._before[epoch]

    def _block(self, epoch: int, number: int) -> _Block:
        with self._lock:
            return self._block_unlocked(epoch, number)

    def _block_unlocked(self, epoch: int, number: int) -> _Block:
        found = self._blocks.get((epoch, number))
        if found is None:
            rows, sizes = self._table(epoch)
            chosen, clips = self._chooser.block(epoch, number, len(rows))
            drawn = 0 if clips is None or self._video is None else clips - self._video.min_clips
            sums = np.zeros(_BLOCK + 1, dtype=np.int64)
            np.cumsum(sizes[chosen, drawn], out=sums[1:])
            found = self._blocks[epoch, number] = _Block(chosen, clips, sums)
            while len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return found

    def _table(self, epoch: int) -> tuple[list[Row], NDArray[np.int64]]:
        return self._stage_table(stage_of(self._plan.scale_growth, epoch))

    def _stage_table(self, stage: int) -> tuple[list[Row], NDArray[np.int64]]:
        found: tuple[list[Row], NDArray[np.int64]] = self._tables(stage)
        return found

    def _make_table(self, stage: int) -> tuple[list[Row], NDArray[np.int64]]:
        rows = table(self._plan, self._batch_size, stage)
        return rows, np.array([self._sizes_of(row) for row in rows], dtype=np.int64)

    def _sizes_of(self, row: Row) -> list[int]:
        """Return the size of a row for each number of clips that may be drawn."""
        video = self._video
        if video is None or not video.random_clips:
            return [row.batch]
        drawn = range(video.min_clips, video.max_clips + 1)
        if video.clip_law == "cvnets":
            return [max(row.batch, row.batch * (video.clips // clips)) for clips in drawn]
        return [law(row.batch * video.clips, clips) for clips in drawn]


def scaled_sizes(
    plan: ScaledBatches, batch_size: int, order: Order, *, role: int = 0
) -> ScaledSizes:
    """Return the sizes of the steps of a plan.

    Args:
        plan: The plan.
        batch_size: Samples per rank that belong to the reference size.
        order: The order of the entries; that of Python is shuffled before the first choice.
        role: Which stream of a composition this is.
    """
    clips = None
    if isinstance(plan, VideoVariable) and plan.random_clips:
        clips = (plan.min_clips, plan.max_clips)
    chooser: Chooser
    if plan.chooser == "cvnets":
        shuffled = order if isinstance(order, ExactOrder) and plan.order == "python" else None
        chooser = ReplayChooser(plan.seed, shuffled, clips)
    else:
        chooser = CounterChooser(plan.seed, role, clips)
    return ScaledSizes(plan, batch_size, chooser)


def _uniform(values: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Map 64 random bits each to 0..count-1, count < 2**32: the high half of a product."""
    high = values >> np.uint64(32)
    return (high * np.uint64(count) >> np.uint64(32)).astype(np.int64)
