"""Batches: columns of copies, whole through torch, and no header that contradicts itself."""

from __future__ import annotations

import copy
import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate, default_convert
from torch.utils.data._utils.pin_memory import pin_memory as torch_pin_memory

import headrace.dataset  # noqa: F401 - tells torch not to collate batches
from headrace.batch import Batch, unpack
from headrace.errors import CursorError, RemoteProtocolError
from headrace.plans.engine import Flag
from headrace.protocol import Payload
from headrace.protocol import messages as m
from tests.support.scripted import cursor


def u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


PAYLOAD = b"aa..bbb.c"
HEADER = m.Batch(
    seq=5,
    epoch=1,
    step=2,
    global_step=12,
    stream="train",
    n=2,
    fields=("jpg", "cls"),
    ids=u64(7, 3),
    keys=("seven", "three"),
    off=u64(0, 4, 8, 0),
    lengths=u64(2, 3, 1, 0),
    flags=bytes([0, Flag.PADDING]),
    meta={"height": 224},
    cursor=cursor(1, 3),
)


def received(payload: bytes = PAYLOAD, **changes: Any) -> Payload:  # noqa: ANN401 - fields of the header
    header = msgspec.structs.replace(HEADER, **changes)
    return Payload(header, memoryview(bytearray(payload)))


def test_values_lie_where_the_header_says() -> None:
    batch = unpack(received())
    assert len(batch) == 2
    assert batch.fields == ("jpg", "cls")
    assert batch["jpg"] == [b"aa", b"bbb"]
    assert batch["cls"] == [b"c", b""]
    assert batch.sample_keys == ["seven", "three"]
    assert batch.indices.tolist() == [7, 3]
    assert batch.flags.tolist() == [0, Flag.PADDING]
    assert batch.cursor.to_state() == cursor(1, 3)
    assert batch.meta == {
        "epoch": 1,
        "step": 2,
        "global_step": 12,
        "stream": "train",
        "role": "main",
        "height": 224,
    }


def test_values_are_copies() -> None:
    source = received()
    batch = unpack(source)
    source.payload[:] = bytes(len(source.payload))
    assert batch["jpg"] == [b"aa", b"bbb"]


def test_iterating_yields_samples() -> None:
    assert list(unpack(received())) == [
        ("seven", {"jpg": b"aa", "cls": b"c"}),
        ("three", {"jpg": b"bbb", "cls": b""}),
    ]


def test_a_single_field_called_data_is_not_wrapped() -> None:
    batch = unpack(received(fields=("data",), off=u64(0, 4), lengths=u64(2, 3)))
    assert list(batch) == [("seven", b"aa"), ("three", b"bbb")]


def test_a_batch_without_columns_still_has_its_samples() -> None:
    batch = unpack(received()).with_columns({})
    assert len(batch) == 2
    assert list(batch) == [("seven", {}), ("three", {})]


def test_a_value_that_a_sample_does_not_have_is_none() -> None:
    batch = unpack(received(lengths=u64(2, 3, m.MISSING, 0)))
    assert batch["cls"] == [None, b""]


def test_samples_without_names_are_called_by_their_index() -> None:
    batch = unpack(received(keys=None))
    assert len(batch) == 2
    assert batch.sample_keys == ["7", "3"]
    assert [key for key, _ in batch] == ["7", "3"]


def test_what_a_plan_adds_does_not_hide_where_the_batch_belongs() -> None:
    assert unpack(received(meta={"epoch": 99})).meta["epoch"] == 1


def test_an_unknown_field_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"'png': this batch has the field\(s\) jpg, cls"):
        unpack(received())["png"]


def test_a_cursor_that_is_none_is_an_error_when_it_is_asked_for() -> None:
    batch = unpack(received(cursor={"epoch": 1}))
    with pytest.raises(CursorError):
        _ = batch.cursor


def test_other_columns_keep_everything_else() -> None:
    batch = unpack(received())
    other = batch.with_columns({"x": [1, 2]})
    assert other["x"] == [1, 2]
    assert other.fields == ("x",)
    assert (other.sample_keys, other.meta) == (batch.sample_keys, batch.meta)
    assert other.cursor == batch.cursor


def test_torch_does_not_take_it_apart() -> None:
    batch = unpack(received())
    assert not isinstance(batch, Sequence | Mapping)
    assert default_convert(batch) is batch  # type: ignore[no-untyped-call]


def test_torch_does_not_stack_it() -> None:
    for batches in ([unpack(received())], [{"x": unpack(received())}], [(unpack(received()),)]):
        with pytest.raises(TypeError, match="use DataLoader\\(dataset, batch_size=None\\)"):
            default_collate(batches)


def test_torch_pins_its_tensors_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = torch.ones(2)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned)
    columns: dict[str, Any] = {
        "x": torch.zeros(2),
        "rows": [torch.zeros(1), torch.zeros(2)],
        "raw": [b"a", None],
    }
    batch = unpack(received()).with_columns(columns)
    other = torch_pin_memory(batch)  # type: ignore[no-untyped-call]
    assert isinstance(other, Batch)
    assert other["x"] is pinned
    assert [row is pinned for row in other["rows"]] == [True, True]
    assert other["raw"] == [b"a", None]
    assert (other.sample_keys, other.meta, other.cursor) == (
        batch.sample_keys,
        batch.meta,
        batch.cursor,
    )
    assert batch["x"] is columns["x"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_it_pickles_under_every_protocol(protocol: int) -> None:
    batch = unpack(received())
    copied = pickle.loads(pickle.dumps(batch, protocol))
    assert list(copied) == list(batch)
    assert copied.cursor == batch.cursor
    assert copy.deepcopy(batch).indices.tolist() == batch.indices.tolist()


def test_it_pickles() -> None:
    batch = unpack(received())
    copy: Batch = pickle.loads(pickle.dumps(batch))
    assert list(copy) == list(batch)
    assert copy.cursor == batch.cursor
    assert np.array_equal(copy.indices, batch.indices)
    assert copy.meta == batch.meta


def test_its_repr_says_where_it_stands() -> None:
    assert repr(unpack(received())) == "<Batch epoch=1 step=2 samples=2 fields=jpg,cls>"


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 3},
        {"n": 0},
        {"n": -2},
        {"ids": u64(7)},
        {"keys": ("seven",)},
        {"flags": bytes(3)},
        {"off": u64(0, 4, 8)},
        {"lengths": u64(2, 3, 1, 0, 0)},
        {"fields": ("jpg",)},
    ],
)
def test_columns_that_contradict_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="samples has columns of"):
        unpack(received(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"off": u64(0, 4, 9, 0)},
        {"off": u64(2**64 - 1, 4, 8, 0)},
        {"lengths": u64(2, 6, 1, 0)},
        {"lengths": u64(2, 2**64 - 2, 1, 0)},
    ],
)
def test_values_outside_of_the_payload_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="outside its payload of 9 bytes"):
        unpack(received(**changes))
