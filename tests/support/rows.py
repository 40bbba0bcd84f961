"""One row for each plan and each of its cuts, orders, tails and splits: the generated matrix.

A plan that is added without a row is found by `tests/unit/plans/test_matrix.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headrace.plans import (
    ByteBudget,
    Chain,
    Data,
    Every,
    Growth,
    Interleaved,
    Limits,
    Link,
    MultiScale,
    Scales,
    Sequential,
    ShardShuffled,
    Shuffled,
    Slice,
    VariableBatch,
    VideoVariable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.plans import Plan
    from headrace.plans.cut import Tail

TAILS: tuple[Tail, ...] = ("short", "drop", "wrap", "wrap-once")
SCALES = Scales(min_height=160, max_height=320, min_width=128, max_width=256, width=224)


class RowCase(NamedTuple):
    """A plan, and how its steps behave."""

    name: str
    plan: Plan
    has_equal_batches: bool = True
    """Whether all ranks have equally many entries in each step."""

    node_blocks: int = 1
    is_partition: bool = True
    """Whether an epoch has each sample exactly once, if its tail drops nothing."""


def rows() -> Iterator[RowCase]:
    """Yield a case for each combination that a plan allows."""
    for tail in TAILS:
        yield RowCase(f"sequential-{tail}", Sequential(batch_size=3, tail=tail))
        yield RowCase(f"keyed-{tail}", Shuffled(batch_size=3, tail=tail, seed=5))
        yield RowCase(f"torch-{tail}", Shuffled(batch_size=2, tail=tail, order="torch"))
        yield RowCase(
            f"shards-{tail}",
            ShardShuffled(batch_size=3, tail=tail, samples_per_shard=4, window=6, seed=1),
        )
        yield RowCase(f"multiscale-{tail}", MultiScale(batch_size=2, tail=tail, scales=SCALES))
        yield RowCase(f"vbs-{tail}", VariableBatch(batch_size=2, tail=tail, scales=SCALES))
        yield RowCase(
            f"video-{tail}",
            VideoVariable(batch_size=2, tail=tail, scales=SCALES, random_clips=True, clips=2),
        )
        for uneven in ("fill", "drop"):
            yield RowCase(
                f"uneven-{uneven}-{tail}",
                Shuffled(batch_size=2, tail=tail, uneven=uneven),
                is_partition=False,
            )
    yield RowCase("torch-continued", Shuffled(batch_size=3, order="torch-continued", seed=2))
    yield RowCase("python", Shuffled(batch_size=3, order="python", seed=2))
    yield RowCase("reverse", Shuffled(batch_size=3, reverse=True))
    yield RowCase("repeats", Shuffled(batch_size=3, repeats=3), is_partition=False)
    yield RowCase("truncated", Shuffled(batch_size=3, repeats=2, truncate=True), is_partition=False)
    yield RowCase("padded", Shuffled(batch_size=3, order="python", pad_to=4), is_partition=False)
    yield RowCase("slice", Shuffled(batch_size=3, subset=Slice(1, None, 2)), is_partition=False)
    yield RowCase("subset", Sequential(batch_size=1, subset=(5, 0, 2)), is_partition=False)
    yield RowCase("part", Shuffled(batch_size=2, part=(1, 2)), is_partition=False)
    yield RowCase("replicated", Shuffled(batch_size=3, replicated=True), is_partition=False)
    yield RowCase(
        "node-blocks",
        Shuffled(batch_size=2, node_blocks=2),
        node_blocks=2,
        is_partition=False,
    )
    yield RowCase(
        "node-blocks-python",
        VariableBatch(
            batch_size=2,
            node_blocks=2,
            order="python",
            chooser="cvnets",
            repeats=2,
            tail="wrap-once",
            scales=SCALES,
        ),
        node_blocks=2,
        is_partition=False,
    )
    yield RowCase("sscfbs", MultiScale(batch_size=3, scales=Scales.one(224, 192)))
    yield RowCase(
        "vbs-cvnets",
        VariableBatch(batch_size=3, order="python", chooser="cvnets", scales=SCALES, seed=4),
    )
    yield RowCase(
        "vbs-largest-growing",
        VariableBatch(
            batch_size=2,
            reference="largest",
            scales=SCALES,
            scale_growth=Growth(epochs=(1, 2), min_factor=0.25, max_factor=0.5),
        ),
    )
    yield RowCase("vbs-evaluation", VariableBatch(batch_size=3, scales=SCALES).evaluation())
    yield RowCase("video-batch", VideoVariable(batch_size=2, vary="batch", scales=SCALES))
    yield RowCase(
        "video-cvnets",
        VideoVariable(
            batch_size=2,
            vary="frames",
            order="python",
            chooser="cvnets",
            random_clips=True,
            clip_law="cvnets",
            clips=4,
            scales=SCALES,
        ),
    )
    yield from _budget_rows()
    yield from _compositions()


def _budget_rows() -> Iterator[RowCase]:
    for tail in TAILS[:3]:
        yield RowCase(
            f"budget-{tail}",
            ByteBudget(max_bytes=40, tail=tail, oversized="own"),
            has_equal_batches=False,
        )
    yield RowCase(
        "budget-drop",
        ByteBudget(max_bytes=40, oversized="drop", zero="drop", drop_last=True, order="sequential"),
        has_equal_batches=False,
        is_partition=False,
    )
    yield RowCase(
        "budget-column",
        ByteBudget(max_total=2.5, column="length", oversized="own", order="torch", reverse=True),
        has_equal_batches=False,
    )
    yield RowCase(
        "budget-replicated",
        ByteBudget(max_bytes=40, oversized="own", replicated=True, order="python"),
        is_partition=False,
    )


def _compositions() -> Iterator[RowCase]:
    parts: dict[str, Link | Sequential | Shuffled | VariableBatch | ByteBudget] = {
        "a": Shuffled(batch_size=2),
        "b": Link(VariableBatch(batch_size=1, scales=SCALES)),
        "c": Sequential(batch_size=3, tail="drop"),
    }
    for mode in ("sequential", "interleave"):
        yield RowCase(
            f"chain-{mode}",
            Chain(plans=parts, mode=mode),  # type: ignore[arg-type]
            is_partition=False,
        )
    extras = {
        "val": Every(Sequential(batch_size=1), epochs=1, batch_size=3),
        "probe": Every(Shuffled(batch_size=2), updates=2),
        "test": Every(MultiScale(batch_size=2, scales=SCALES), samples=7),
    }
    yield RowCase(
        "interleaved",
        Interleaved(train=Shuffled(batch_size=2), extras=extras, limits=Limits(epochs=2)),
        is_partition=False,
    )
    yield RowCase(
        "interleaved-rank",
        Interleaved(
            train=VariableBatch(batch_size=2, scales=SCALES),
            extras=extras,
            limits=Limits(samples=30, updates=9),
            samples_of="rank",
        ),
        is_partition=False,
    )
    yield RowCase(
        "interleaved-accumulated",
        Interleaved(
            train=Sequential(batch_size=1, tail="drop"),
            extras=extras,
            limits=Limits(updates=7),
            accumulate=2,
        ),
        is_partition=False,
    )
    yield RowCase(
        "interleaved-chain",
        Interleaved(
            train=Chain(plans={"a": Shuffled(batch_size=2), "b": Sequential(batch_size=3)}),
            extras={"budget": Every(ByteBudget(max_bytes=60, oversized="own"), updates=3)},
            limits=Limits(epochs=2),
        ),
        has_equal_batches=False,
        is_partition=False,
    )
    yield RowCase(
        "interleaved-budget",
        Interleaved(
            train=ByteBudget(max_bytes=60, oversized="own"),
            extras={"val": Every(Sequential(batch_size=2), samples=10)},
            limits=Limits(epochs=2),
        ),
        has_equal_batches=False,
        is_partition=False,
    )
    yield RowCase(
        "interleaved-evaluation",
        Interleaved(train=Shuffled(batch_size=2), extras=extras, limits=Limits(epochs=0)),
        is_partition=False,
    )


def data(length: int) -> Data:
    """Return data of a length, with sizes that are often 0 or above the budget of the rows."""
    draw = np.random.default_rng(length)
    sizes = draw.integers(0, 30, length)
    sizes[draw.random(length) < 0.1] = 0
    sizes[draw.random(length) < 0.1] = 50
    lengths = np.round(draw.random(length), 2)
    columns = {"sizes": sizes, "length": lengths}
    return Data(
        length,
        columns=columns,
        parts={"b": Data(length + 3), "probe": Data(5)} if length > 3 else {},
    )
