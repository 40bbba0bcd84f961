"""Summaries: what is said of an epoch is what an epoch has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headrace.plans.engine import Flag
from headrace_daemon.commands.plan import walk
from tests.support.commands import headrace, headrace_here
from tests.support.planview import PlanView
from tests.support.rows import data, rows

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {row.name: row for row in rows()}
LENGTH = 20


def summary(*arguments: str | Path) -> dict[str, Any]:
    done = headrace_here("plan", *arguments, "--summary", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(done.stdout)["summary"]
    return facts


@pytest.mark.parametrize("name", ROWS)
def test_a_summary_counts_the_batches_of_all_ranks(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    parts = tuple(row.plan.program(data(LENGTH)).streams)
    view = PlanView(row.plan, data(LENGTH), parts, tmp_path)
    world_size = 3 * row.node_blocks
    ranks = ("--world-size", str(world_size))
    document = view.document(*ranks, "--summary")
    facts = document["summary"]
    samplers = [row.plan.batch_sampler(view.data, rank, world_size) for rank in range(world_size)]
    by_rank = [list(sampler.batches()) for sampler in samplers]
    batches = [batch for found in by_rank for batch in found]
    fillers = sum(int((batch.flags & Flag.PADDING > 0).sum()) for batch in batches)
    entries = sum(len(batch.indices) for batch in batches)
    assert facts["steps"] == facts["counted_steps"] == len(by_rank[0])
    assert facts["counted_ranks"] == world_size
    assert (facts["samples"], facts["fillers"]) == (entries - fillers, fillers)
    counted = facts["counted"]
    assert (counted["batches"], counted["samples"]) == (len(batches), entries - fillers)
    sizes = [
        int(view.data.columns["sizes"][batch.indices].sum())
        for batch in batches
        if view.data.part(batch.stream) is view.data
    ]
    assert counted["bytes"] == sum(sizes)
    assert counted["batch_bytes"]["max"] == max(sizes)
    assert sum(one["count"] for one in counted["batch_sizes"]["bins"]) == len(batches)
    streams = {batch.stream for batch in batches if batch.stream}
    for stream in streams:
        of_it = [batch for batch in batches if batch.stream == stream]
        assert facts["streams"][stream]["batches"] == len(of_it)


@pytest.mark.parametrize(
    "words",
    [
        ("--plan", "Shuffled", "--batch-size", "7"),
        ("--plan", "Sequential", "--batch-size", "7", "--tail", "drop"),
        ("--plan", "Shuffled", "--batch-size", "7", "--tail", "wrap"),
        ("--plan", "VariableBatch", "--batch-size", "7"),
        ("--plan", "ShardShuffled", "-o", "samples_per_shard=10"),
        ("--plan", "ByteBudget", "-o", "max_bytes=200", "--sizes", "1:50"),
        ("--plan", "Shuffled", "-o", "pad_to=64"),
    ],
    ids=lambda words: " ".join(words[1:]),
)
def test_what_is_known_without_looking_is_what_looking_finds(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = (*words, "--length", "20011", "--world-size", "3")
    whole = summary(*base, "--whole")
    monkeypatch.setattr(walk, "MAX_BATCHES", 300)
    sampled = summary(*base)
    assert sampled["counted_steps"] < sampled["steps"] == whole["steps"]
    is_padded = "pad_to=64" in words
    assert sampled["samples"] == (None if is_padded else whole["samples"])
    # Ranks differ where a budget cuts.
    is_known = not is_padded and "ByteBudget" not in words
    assert sampled["fillers"] == (whole["fillers"] if is_known else None)
    counted = sampled["counted"]
    assert counted["batches"] == 3 * sampled["counted_steps"]
    for name in ("min", "max"):
        assert (
            whole["counted"]["batch_sizes"]["min"]
            <= counted["batch_sizes"][name]
            <= whole["counted"]["batch_sizes"]["max"]
        )


def test_one_rank_and_a_range_are_counted_by_themselves() -> None:
    base = ("--length", "100", "--batch-size", "4", "--world-size", "2", "--sizes", "10")
    facts = summary(*base, "--rank", "1", "--steps", "5:20")
    assert (facts["steps"], facts["counted_ranks"]) == (15, 1)
    assert facts["first"] == {"epoch": 0, "step": 5, "global_step": 5}
    # Two whole steps of 8 are left out of each epoch of 13 steps; the last has 4 of both.
    assert facts["counted"]["samples"] == 58
    assert facts["samples"] == 116


def test_a_huge_epoch_is_summarised_at_once() -> None:
    done = headrace(
        "plan", "--length", "1000000000", "--plan", "VariableBatch", "--world-size", "4",
        "--summary", "--rank", "0:2", "--batch-size", "4096",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "exact: steps, samples, fillers; the rest is counted in " in done.stdout
    assert "samples   1,000,000,000 on all ranks, " in done.stdout
    assert "batches of 2 of 4 ranks" in done.stdout


def test_the_words_say_what_was_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "sizes.npy", np.array([10, 20, 30, 40, 50] * 20))
    done = headrace(
        "plan", "--length", "100", "--sizes", tmp_path / "sizes.npy", "--plan", "ByteBudget",
        "-o", "max_bytes=100", "-o", "order=sequential", "--world-size", "2", "--summary",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "steps     20 from step 0 of epoch 0 on" in lines
    assert "samples   100 on all ranks, 0 fillers" in lines
    assert "batches   40 batches: 100 samples, 0 fillers, 3.0 kB" in lines
    assert "budget    100 bytes; 40 batches, 0 oversized" in lines
    assert "fill      min 50.0%, median 75.0%, mean 75.0%, max 100.0%" in lines
    at = lines.index("samples of a batch")
    assert lines[at + 1 : at + 3] == ["       1   1  █", f"  2 to 5  39  {'█' * 32}"]


def test_each_stream_has_a_section(tmp_path: Path) -> None:
    view = PlanView(ROWS["interleaved"].plan, data(LENGTH), ("probe",), tmp_path)
    done = headrace_here("plan", *view._words, "--summary")
    assert [line for line in done.stdout.splitlines() if line.startswith("stream ")] == [
        "stream train", "stream val", "stream probe", "stream test",
    ]  # fmt: skip


def test_what_is_not_counted_is_estimated_for_all_ranks() -> None:
    words = ("plan", "--length", "100000", "--sizes", "1000", "--batch-size", "10", "--summary")
    one = headrace_here(*words, "--world-size", "4", "--rank", "2").stdout.splitlines()
    assert "          batches of 1 of 4 ranks" in one
    assert "bytes     about 100.0 MB on all ranks" in one
    assert "batches   2,500 batches: 25,000 samples, 0 fillers, 25.0 MB" in one
    assert "a batch   10 samples" in one
    assert "          10.0 kB" in one
    large = headrace_here(*words[:-3], "--batch-size", "30000", "--summary").stdout
    assert "a batch   min 10,000 samples, median 30,000 samples, mean 25,000 samples" in large


def test_many_scales_are_shown_as_a_few_and_the_rest() -> None:
    words = ("plan", "--length", "30000", "--plan", "MultiScale", "--batch-size", "10", "--summary")
    grid = ("-o", "scales.count=40", "-o", "scales.divisor=1")
    lines = headrace_here(*words, *grid).stdout.splitlines()
    at = lines.index("scales")
    assert " more  " in lines[at + 25]
    counts = [int(line.split("  ")[-2].replace(",", "")) for line in lines[at + 1 : at + 26]]
    assert sum(counts) == 3000


def test_an_empty_range_is_said_to_be_empty() -> None:
    done = headrace_here("plan", "--length", "10", "--summary", "--steps", "2:2")
    assert done.stdout.splitlines()[-2:] == [
        "samples   0 on all ranks, 0 fillers",
        "batches   0 batches: 0 samples, 0 fillers",
    ]
