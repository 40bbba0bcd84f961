"""Every wrong argument of every plan: one sentence with field, value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.errors import PlanError
from headrace.plans import (
    ByteBudget,
    Chain,
    Data,
    Every,
    FromSampler,
    Growth,
    Interleaved,
    Limits,
    MultiScale,
    Plan,
    Scales,
    Sequential,
    ShardShuffled,
    Shuffled,
    Slice,
    VariableBatch,
    VideoVariable,
)
from headrace.plans.engine import BoundPlan, epoch_steps

ONE = Sequential(batch_size=1)

FIXED: dict[Any, dict[str, Any]] = {
    Sequential: {"batch_size": 2},
    Shuffled: {"batch_size": 2},
    ShardShuffled: {"batch_size": 2},
    MultiScale: {"batch_size": 2},
    VariableBatch: {"batch_size": 2},
    VideoVariable: {"batch_size": 2},
    ByteBudget: {"max_bytes": 2},
    Scales: {},
    Growth: {},
    Every: {"plan": ONE, "epochs": 1},
    Limits: {"epochs": 1},
    Interleaved: {"train": ONE, "limits": Limits(epochs=1)},
    Chain: {"plans": {"a": ONE}},
    Slice: {},
}

ORDERED: tuple[Any, ...] = (
    Sequential,
    Shuffled,
    MultiScale,
    VariableBatch,
    VideoVariable,
    ByteBudget,
)
SEEDED: tuple[Any, ...] = (
    Shuffled,
    ShardShuffled,
    MultiScale,
    VariableBatch,
    VideoVariable,
    ByteBudget,
)
SCALED: tuple[Any, ...] = (MultiScale, VariableBatch, VideoVariable)
BATCHED: tuple[Any, ...] = (Sequential, Shuffled, ShardShuffled, *SCALED)


def wrong() -> list[tuple[Any, str, Any, str]]:
    """Return kinds, fields, wrong values, and what the sentence must say besides these."""
    found: list[tuple[Any, str, Any, str]] = []
    for kind in ORDERED:
        found += [
            (kind, "pad_to", 0, "an integer in 1.."),
            (kind, "node_blocks", -1, "an integer in 1.."),
            (kind, "repeats", 2.5, "an integer in 1.."),
            (kind, "reverse", 1, "true or false"),
            (kind, "truncate", "yes", "true or false"),
            (kind, "replicated", None, "true or false"),
            (kind, "part", (3, 2), "an integer in 0..1"),
            (kind, "part", 4, "(offset, every)"),
            (kind, "part", (0, 0), "an integer in 1.."),
            (kind, "subset", (), "Slice(start, stop, step)"),
            (kind, "subset", "0:5", "Slice(start, stop, step)"),
            (kind, "subset", (1, -2), "an integer in 0.."),
        ]
    for kind in BATCHED:
        found += [
            (kind, "batch_size", 0, "an integer in 1.."),
            (kind, "tail", "pad", "'short', 'drop', 'wrap' or 'wrap-once'"),
            (kind, "uneven", "pad", "'fill' or 'drop'"),
            (kind, "global_batch_size", 4, "exactly one of batch_size="),
        ]
    for kind in SEEDED:
        found += [
            (kind, "seed", -1, "an integer in 0.."),
            (kind, "seed", 2**64, "an integer in 0.."),
        ]
    for kind in (Shuffled, ByteBudget, *SCALED):
        found += [(kind, "order", "numpy", "'keyed', 'torch', 'torch-continued' or 'python'")]
    for kind in SCALED:
        found += [
            (kind, "chooser", "dice", "'counter' or 'cvnets'"),
            (kind, "scales", (160, 320), "must be Scales("),
            (kind, "scale_growth", 40, "must be Growth("),
        ]
    found += [
        (Sequential, "shards", 3, "must be Slice("),
        (ShardShuffled, "window", 0, "an integer in 1.."),
        (ShardShuffled, "samples_per_shard", 0, "an integer in 1.."),
        (ShardShuffled, "node_blocks", 2, "does not go with ShardShuffled"),
        (ShardShuffled, "subset", (1, 2), "does not go with ShardShuffled"),
        (ShardShuffled, "pad_to", 3, "does not go with ShardShuffled"),
        (VariableBatch, "reference", "smallest", "'base' or 'largest'"),
        (VideoVariable, "frames", 0, "an integer in 1.."),
        (VideoVariable, "clips", 0, "an integer in 1.."),
        (VideoVariable, "min_clips", 9, "is above max_clips=5"),
        (VideoVariable, "max_clips", 0, "an integer in 1.."),
        (VideoVariable, "random_clips", 1, "true or false"),
        (VideoVariable, "vary", "all", "'frames', 'batch' or 'nothing'"),
        (VideoVariable, "clip_law", "none", "'budget' or 'cvnets'"),
        (ByteBudget, "max_bytes", 0, "a number above 0 and finite"),
        (ByteBudget, "max_bytes", math.inf, "a number above 0 and finite"),
        (ByteBudget, "max_bytes", math.nan, "a number above 0 and finite"),
        (ByteBudget, "max_bytes", "1MiB", "a number above 0 and finite"),
        (ByteBudget, "max_bytes", None, "exactly one of max_bytes= and max_total="),
        (ByteBudget, "max_total", 5, "exactly one of max_bytes= and max_total="),
        (ByteBudget, "column", "", "is no name of a column"),
        (ByteBudget, "column", "length", "goes with max_total="),
        (ByteBudget, "oversized", "skip", "'error', 'own' or 'drop'"),
        (ByteBudget, "zero", "skip", "'keep' or 'drop'"),
        (ByteBudget, "drop_last", 1, "true or false"),
        (ByteBudget, "saturation_factor", 1.5, "at least 0 and at most 1"),
        (ByteBudget, "tail", "wrap-once", "'short', 'drop' or 'wrap'"),
        (ByteBudget, "node_blocks", 2, "does not go with ByteBudget"),
        (Scales, "height", 0, "an integer in 1.."),
        (Scales, "min_width", 2**20, "an integer in 1.."),
        (Scales, "min_height", 999, "is above max_height=320"),
        (Scales, "count", 0, "an integer in 1..1024"),
        (Scales, "divisor", 0, "an integer in 1.."),
        (Scales, "pairing", "zip", "'position', 'head' or 'v0.3'"),
        (Growth, "epochs", 40, "a tuple of epochs"),
        (Growth, "epochs", (-1,), "an integer in 0.."),
        (Growth, "epochs", tuple(range(65)), "at most 64 epochs"),
        (Growth, "min_factor", -1, "at least 0 and at most 100"),
        (Growth, "max_factor", "double", "at least 0 and at most 100"),
        (Every, "plan", "val", "is no plan over one order"),
        (Every, "epochs", 0, "an integer in 1.."),
        (Every, "updates", 3, "exactly one of epochs=, updates=, samples="),
        (Every, "epochs", None, "exactly one of epochs=, updates=, samples="),
        (Every, "batch_size", 0, "an integer in 1.."),
        (Every, "same_order", 1, "true or false"),
        (Every, "source", "/data", "is no source"),
        (Limits, "epochs", -1, "an integer in 0.."),
        (Limits, "epochs", None, "at least one of epochs=, updates=, samples="),
        (Interleaved, "train", "main", "is no plan to run as the main one"),
        (Interleaved, "train", 5, "main one: give Chain, Sequential, Shuffled"),
        (Interleaved, "train", FromSampler([0], batch_size=1), "give Drawn(sampler=…, batch_size"),
        (Every, "plan", FromSampler([0], batch_size=1), "give Drawn(sampler=…, batch_size"),
        (Interleaved, "limits", 3, "must be Limits("),
        (Interleaved, "extras", {"val": ONE}, "must be Every("),
        (Interleaved, "extras", {"train": Every(ONE, epochs=1)}, "is taken by the main plan"),
        (Interleaved, "samples_of", "ranks", "'all' or 'rank'"),
        (Interleaved, "accumulate", 0, "an integer in 1.."),
        (Chain, "plans", {}, "a dict of 1..256 plans by name"),
        (Chain, "plans", {"": ONE}, "it must have 1..64 bytes"),
        (Chain, "plans", {"a": 5}, "is no plan over one order"),
        (Chain, "mode", "random", "'sequential' or 'interleave'"),
        (Slice, "start", -1, "an integer in 0.."),
        (Slice, "stop", -1, "an integer in 0.."),
        (Slice, "step", 0, "an integer in 1.."),
    ]
    return found


@pytest.mark.parametrize(
    ("kind", "name", "value", "allowed"),
    wrong(),
    ids=lambda value: getattr(value, "__name__", None) or repr(value)[:24],
)
def test_a_wrong_argument_is_one_sentence_with_the_field_and_what_is_allowed(
    kind: Any,  # noqa: ANN401
    name: str,
    value: Any,  # noqa: ANN401
    allowed: str,
) -> None:
    with pytest.raises(PlanError) as refused:
        kind(**{**FIXED[kind], name: value})
    text = str(refused.value)
    assert allowed in text
    assert name.removeprefix("global_") in text or "plan=" in text
    assert "\n" not in text
    assert ". " not in text.replace("...", "")
    if isinstance(value, int | float | str) and value and "exactly" not in text:
        assert repr(value) in text


def test_every_field_of_every_plan_is_tried() -> None:
    tried = {(kind, name) for kind, name, *_ in wrong()}
    for kind in FIXED:
        for name in kind.__struct_fields__:
            if (kind, name) not in tried:
                assert (kind.__name__, name) in {
                    # the same field of the same base is tried on another kind
                    *(("ShardShuffled", field) for field in Sequential.__struct_fields__),
                    *(("Scales", side) for side in ("width", "max_height", "max_width")),
                    *(("Limits", field) for field in ("updates", "samples")),
                    ("Every", "samples"),
                }, (kind.__name__, name)


def test_a_subset_has_a_limit() -> None:
    Sequential(batch_size=1, subset=tuple(range(100_000)))
    with pytest.raises(PlanError, match=r"subset=tuple of 100001 indices is out of range"):
        Sequential(batch_size=1, subset=tuple(range(100_001)))
    with pytest.raises(PlanError, match=r"^subset=range\(0, 3\) is out of range: give Slice"):
        Sequential(batch_size=1, subset=range(3))  # type: ignore[arg-type]


# --- Against data and ranks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "data", "told"),
    [
        (
            ByteBudget(max_bytes=9),
            Data(3),
            "column='sizes' is not in the data, which has: none; give the sizes of the samples",
        ),
        (
            ByteBudget(max_total=9, column="tokens"),
            Data.of([1, 2, 3]),
            "column='tokens' is not in the data, which has: sizes",
        ),
        (
            ByteBudget(max_bytes=9),
            Data.of([1, 20, 3]),
            "sample 1 has 20 in column 'sizes', above max_bytes=9: raise it, or choose "
            "oversized='own' or 'drop'",
        ),
        (ByteBudget(max_bytes=9), Data.of([1, -2, 3]), "column 'sizes' has -2 for sample 1"),
        (ByteBudget(max_bytes=9), Data.of([1, math.nan]), "column 'sizes' has nan for sample 1"),
        (Sequential(batch_size=1), Data(0), "a plan needs at least one sample"),
        (
            Sequential(batch_size=1, subset=Slice(3, 3)),
            Data(5),
            "the data has no samples, or its subset none",
        ),
        (
            Shuffled(batch_size=2, node_blocks=2),
            Data(12),
            "node_blocks=2 does not divide world_size=3",
        ),
        (Sequential(batch_size=5, tail="drop"), Data(14), "one step of 3 rank(s) takes 15"),
        (
            ByteBudget(max_bytes=9, tail="drop"),
            Data.of([1, 2]),
            "the budget of 9 leaves no step in epoch 0: 2 samples make 1 batches for 3 rank(s)",
        ),
    ],
)
def test_what_does_not_fit_the_data_or_the_ranks_is_one_sentence(
    plan: Plan, data: Data, told: str
) -> None:
    with pytest.raises(PlanError) as refused:
        epoch_steps(BoundPlan.to(plan, data), 3)
    assert told in str(refused.value)


def test_an_oversized_sample_outside_of_the_subset_does_not_count() -> None:
    sizes = [1, 20, 3, 20]
    for subset in (Slice(0, None, 2), Slice(2, 3), (0, 2)):
        BoundPlan.to(ByteBudget(max_bytes=9, subset=subset), Data.of(sizes))
    for subset in (Slice(0, 2), (2, 3)):
        with pytest.raises(PlanError, match="oversized="):
            BoundPlan.to(ByteBudget(max_bytes=9, subset=subset), Data.of(sizes))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"length": 3, "columns": {"sizes": "abc"}}, "column 'sizes' has"),
        ({"length": 3, "columns": {"sizes": [1, 2]}}, "a number for each of the 3 samples"),
        ({"length": 3, "shards": [0, 2]}, "shards must ascend from 0 to the length of 3"),
        ({"length": 3, "shards": [0, 2, 1, 3]}, "shards must ascend"),
        ({"length": 1.5}, "length=1.5 is out of range"),
    ],
)
def test_data_that_does_not_add_up_is_refused(facts: dict[str, Any], told: str) -> None:
    arrays: dict[str, Any] = {
        "columns": {name: np.array(column) for name, column in facts.get("columns", {}).items()},
        "shards": np.array(facts["shards"], dtype=np.uint64) if "shards" in facts else None,
    }
    with pytest.raises(PlanError) as refused:
        Data(facts["length"], **arrays)
    assert told in str(refused.value)


# --- As maps --------------------------------------------------------------------------------------


def test_a_wrong_field_in_a_nested_plan_is_named_with_its_path() -> None:
    text = (
        '{"type":"Interleaved","train":{"type":"Shuffled","batch_size":2},"limits":{"epochs":1},'
        '"extras":{"val":{"plan":{"type":"Sequential","batch_size":0},"epochs":1}}}'
    )
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(text, type=Plan)
    assert "batch_size=0 is out of range" in str(refused.value)
    assert "$.extras[...].plan" in str(refused.value)
