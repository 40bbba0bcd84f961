"""Collation: what transforms return becomes columns, without loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from headrace.batch import Batch
from headrace.collate import apply, samples_of, stack
from headrace.plans.engine import Flag


def make(*values: bytes) -> Batch:
    return Batch(
        {"data": list(values)},
        sample_keys=[f"s{number}" for number in range(len(values))],
        indices=np.arange(len(values), dtype=np.uint64),
        flags=np.zeros(len(values), dtype=np.uint8),
        meta={"epoch": 0, "step": 0},
        cursor={},
    )


BATCH = make(b"a", b"bb", b"ccc")


class Pair(NamedTuple):
    length: int
    value: bytes


def test_without_functions_the_batch_stays_itself() -> None:
    assert apply(BATCH, None, None) is BATCH


def test_a_transform_gets_each_sample_with_its_name() -> None:
    seen: list[Any] = []
    apply(BATCH, seen.append, None)
    assert seen == [
        {"__key__": "s0", "data": b"a"},
        {"__key__": "s1", "data": b"bb"},
        {"__key__": "s2", "data": b"ccc"},
    ]
    assert samples_of(BATCH) == seen


def test_an_error_of_a_transform_names_its_sample() -> None:
    def decode(sample: dict[str, Any]) -> bytes:
        if sample.pop("__key__") == "s1":
            raise ValueError("no image")
        return bytes(sample["data"])

    with pytest.raises(ValueError, match="no image") as caught:
        apply(BATCH, decode, None)
    assert caught.value.__notes__ == ["in transform= of sample 's1'"]


def test_an_error_of_a_transform_names_its_sample_behind_a_hole() -> None:
    batch = make(b"a", b"bb", b"ccc")
    batch.flags[0] = Flag.HOLE
    with pytest.raises(ZeroDivisionError) as caught:
        apply(batch, lambda sample: 1 // (len(sample["data"]) - 3), None)
    assert caught.value.__notes__ == ["in transform= of sample 's2'"]


def test_a_collation_gets_all_samples_and_the_loop_what_it_returns() -> None:
    assert apply(BATCH, None, lambda samples: samples) == samples_of(BATCH)
    assert apply(BATCH, lambda sample: len(sample["data"]), sum) == 6
    assert apply(BATCH, None, lambda samples: None) is None


def test_dicts_become_the_columns_of_a_batch() -> None:
    got = apply(BATCH, lambda s: {"size": len(s["data"]), "data": s["data"]}, None)
    assert isinstance(got, Batch)
    assert got["size"].tolist() == [1, 2, 3]
    assert got["data"] == [b"a", b"bb", b"ccc"]
    assert got.sample_keys == ["s0", "s1", "s2"]


def test_the_name_of_a_sample_is_no_column() -> None:
    got = apply(BATCH, lambda sample: sample, None)
    assert got.fields == ("data",)


def test_an_empty_dict_is_a_batch_without_columns() -> None:
    got = apply(BATCH, lambda sample: {}, None)
    assert got.fields == ()
    assert len(got) == 3


def test_dicts_with_different_keys_stay_a_list() -> None:
    got = apply(BATCH, lambda sample: {sample["__key__"]: 1}, None)
    assert got == [{"s0": 1}, {"s1": 1}, {"s2": 1}]


def test_tuples_become_columns() -> None:
    sizes, values = apply(BATCH, lambda s: (len(s["data"]), s["data"]), None)
    assert sizes.tolist() == [1, 2, 3]
    assert values == [b"a", b"bb", b"ccc"]


def test_named_tuples_keep_their_names() -> None:
    got = apply(BATCH, lambda s: Pair(len(s["data"]), s["data"]), None)
    assert isinstance(got, Pair)
    assert torch.equal(torch.as_tensor(got.length), torch.tensor([1, 2, 3]))


def test_tuples_of_different_lengths_stay_a_list() -> None:
    got = apply(BATCH, lambda s: tuple(s["data"]), None)
    assert got == [(97,), (98, 98), (99, 99, 99)]


def test_anything_else_is_one_column() -> None:
    assert apply(BATCH, lambda s: len(s["data"]), None).tolist() == [1, 2, 3]
    assert apply(BATCH, lambda s: s["data"], None) == [b"a", b"bb", b"ccc"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], torch.tensor([1, 2])),
        ([-(2**63), 2**63 - 1], torch.tensor([-(2**63), 2**63 - 1])),
        ([True, False], torch.tensor([True, False])),
        ([1.5, 2.0], torch.tensor([1.5, 2.0], dtype=torch.float64)),
        ([np.float32(1.5)] * 2, torch.tensor([1.5, 1.5])),
        ([np.int64(7)], torch.tensor([7])),
        ([np.bool_(True)], torch.tensor([True])),
        ([np.ones(2, np.uint8)] * 2, torch.ones(2, 2, dtype=torch.uint8)),
        ([np.ones(2, ">f4")], torch.ones(1, 2)),
        ([torch.ones(2, 3)] * 4, torch.ones(4, 2, 3)),
    ],
)
def test_what_fits_together_is_stacked(values: list[Any], expected: torch.Tensor) -> None:
    got = stack(values)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.0],
        [1, True],
        [1, None],
        [2**63],
        ["a", "b"],
        [b"a"],
        [None, None],
        [{"a": 1}],
        [np.zeros(2), np.zeros(3)],
        [np.zeros(2, np.float32), np.zeros(2, np.float64)],
        [np.array("text")],
        [np.str_("text")],
        [np.zeros(2, np.longdouble)],
        [torch.zeros(2), torch.zeros(3)],
        [torch.zeros(2), torch.zeros(2, dtype=torch.int64)],
        [torch.zeros(2), np.zeros(2)],
    ],
)
def test_what_does_not_stays_as_it_is(values: list[Any]) -> None:
    got = stack(values)
    assert isinstance(got, list)
    assert all(one is other for one, other in zip(got, values, strict=True))
