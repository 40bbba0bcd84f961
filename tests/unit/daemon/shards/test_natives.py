"""Shards as WebDataset reads them, where it is right: the oracle for samples as a whole."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.members import group_members
from tests.support.shards import FORMATS, tar_of, walked

PARTS = st.sampled_from(["a", "b.c", "d", "long" * 30, "ü"])
SAMPLES = st.lists(
    st.tuples(
        st.lists(PARTS, max_size=2),
        st.sets(st.sampled_from(["jpg", "cls", "seg.png", "JSON", "txt.gz"]), min_size=1),
    ),
    max_size=6,
)


def by_webdataset(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    source = [{"url": "s.tar", "stream": io.BytesIO(data)}]
    samples: list[dict[str, Any]] = list(group_by_keys(tar_file_expander(source)))
    return [
        (sample["__key__"], {name: value for name, value in sample.items() if name[0] != "_"})
        for sample in samples
    ]


@given(SAMPLES, st.sampled_from(FORMATS), st.integers(0, 2000))
def test_samples_are_those_of_webdataset(
    samples: list[tuple[list[str], set[str]]], form: int, size: int
) -> None:
    members = [
        ("/".join([*folders, f"{number}.{field}"]), bytes([number]) * size)
        for number, (folders, fields) in enumerate(samples)
        for field in sorted(fields)
    ]
    data = tar_of(members, form)
    found = walked(data)
    ours = [
        (
            sample.key,
            {
                field: data[found[at].start : found[at].start + found[at].size]
                for field, at in sample.members.items()
            },
        )
        for sample in group_members([one.name for one in found])
    ]
    assert ours == by_webdataset(data)
    assert len(ours) == len(samples)
