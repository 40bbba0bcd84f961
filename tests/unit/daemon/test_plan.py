"""``headrace plan``: what a rank gets, equal to what a trainer receives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from headrace.client import Channel
from headrace.protocol import Payload
from headrace.protocol import messages as m
from tests.support.commands import (
    DEADLINE_S,
    HEADRACE,
    environment,
    headrace,
    headrace_here,
    serving,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(socket_path: Path) -> Path:
    return socket_path.parent


@pytest.fixture
def data(folder: Path) -> Path:
    """Return a folder of 11 files of 0, 10, 20, … bytes."""
    path = folder / "data"
    path.mkdir()
    for number in range(11):
        (path / f"{number:02}.bin").write_bytes(bytes(10 * number))
    return path


def config(folder: Path, data: Path) -> Path:
    path = folder / "headrace.toml"
    path.write_text(
        f"""
        default_stream = "train"
        [daemon]
        socket = "{folder}/s"
        state_dir = "{folder}/state"
        [streams.train]
        source = {{ uri = "{data}" }}
        plan = {{ type = "Shuffled", global_batch_size = 4, seed = 17 }}
        [streams.rest]
        source = {{ uri = "{data}", suffix = "0.bin" }}
        plan = {{ type = "Sequential", batch_size = 1 }}
        """
    )
    return path


def printed(*arguments: str | Path) -> dict[str, Any]:
    done = headrace_here("plan", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_json_has_all_of_each_step(folder: Path, data: Path) -> None:
    facts = printed(data, "--plan", "Sequential", "--batch-size", "4", "--steps", "2:4")
    assert {name: facts[name] for name in ("samples", "total_bytes", "rank", "world_size")} == {
        "samples": 11,
        "total_bytes": 550,
        "rank": 0,
        "world_size": 1,
    }
    assert facts["steps_per_epoch"] == 3
    assert (
        facts["plan"]
        | {
            "type": "Sequential",
            "batch_size": 4,
            "global_batch_size": None,
            "tail": "short",
        }
        == facts["plan"]
    )
    first, second = facts["steps"]
    cursor = first.pop("cursor")
    assert (cursor["epoch"], cursor["step"], cursor["plan"]) == (1, 0, facts["plan_digest"])
    assert first == {
        "epoch": 0,
        "step": 2,
        "global_step": 2,
        "rank": 0,
        "stream": "",
        "origin": None,
        "ids": [8, 9, 10],
        "names": ["08.bin", "09.bin", "10.bin"],
        "padding": [False, False, False],
        "flags": [0, 0, 0],
        "bytes": 270,
        "meta": {},
    }
    assert (second["epoch"], second["step"], second["global_step"]) == (1, 0, 3)


def test_the_table_is_for_people(data: Path) -> None:
    done = headrace("plan", data, "--plan", "Sequential", "--batch-size", "4", "--world-size", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert f"source {data}" in done.stdout
    assert "epoch  2 steps; rank 0 of 2" in done.stdout
    assert ["0", "0", "4", "120", "bytes", "0", "2", "4", "6"] in lines
    assert ["0", "1", "2", "180", "bytes", "8", "10"] in lines
    done = headrace(
        "plan", data, "--plan", "Sequential", "--batch-size", "4", "--world-size", "2",
        "--rank", "1", "--steps", "1",
    )  # fmt: skip
    assert ["0", "1", "2", "90", "bytes", "9", "+0"] in map(str.split, done.stdout.splitlines())


def test_names_that_look_like_markup_are_printed_as_they_are(folder: Path) -> None:
    data = folder / "with [bold] and [/red] :smile:"
    data.mkdir(parents=True)
    (data / "x").write_bytes(b"1")
    done = headrace("plan", data)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"source {data}" in done.stdout


def test_it_is_what_a_trainer_receives(folder: Path, data: Path) -> None:
    """D5: first, second, middle, last step, and the first of the next epoch."""
    path = config(folder, data)
    with serving("--config", path):
        for world_size, rank in ((1, 0), (2, 0), (2, 1), (4, 3)):
            part = ("--rank", str(rank), "--world-size", str(world_size))
            steps = printed("--config", path, *part, "--steps", "0:7")["steps"]
            assert [(step["epoch"], step["step"]) for step in steps] == [
                (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0),
            ]  # fmt: skip
            with Channel.connect(os.fspath(folder / "s")) as channel:
                channel.send(m.Open(rank=rank, world_size=world_size, credit=7))
                received: list[m.Header] = []
                while len(received) < 7:
                    event = channel.receive()
                    if isinstance(event, Payload):
                        received.append(event.header)
            for step, header in zip(steps, received, strict=True):
                assert isinstance(header, m.Batch)
                assert step["ids"] == np.frombuffer(header.ids, "<u8").tolist()
                assert step["names"] == list(header.keys or ())
                assert step["cursor"] == header.cursor
                assert step["padding"] == [bool(flag & 1) for flag in header.flags]
                assert step["bytes"] == int(np.frombuffer(header.lengths, "<u8").sum())
                assert (step["epoch"], step["step"]) == (header.epoch, header.step)
                assert step["global_step"] == header.global_step


def test_any_epoch_is_reached_at_once(data: Path) -> None:
    facts = printed(data, "--batch-size", "4", "--epoch", "1000000000", "--steps", "1")
    (step,) = facts["steps"]
    assert (step["epoch"], step["step"]) == (10**9, 1)


@pytest.mark.parametrize(
    ("steps", "found"),
    [("3", [3]), ("1:3", [1, 2]), (":2", [0, 1]), ("4:", list(range(4, 14))), ("2:2", [])],
)
def test_ranges_are_written_as_in_python(data: Path, steps: str, found: list[int]) -> None:
    facts = printed(data, "--batch-size", "1", "--steps", steps)
    assert [step["global_step"] for step in facts["steps"]] == found


def test_streams_of_the_configuration_are_planned_by_name(folder: Path, data: Path) -> None:
    path = config(folder, data)
    assert printed("--config", path)["samples"] == 11
    assert printed("--config", path, "--stream", "rest")["samples"] == 2


def test_the_manifest_of_the_daemon_is_used_if_it_has_one(folder: Path, data: Path) -> None:
    path = config(folder, data)
    assert headrace("index", "--config", path).returncode == 0
    (data / "late.bin").write_bytes(b"late")
    assert printed("--config", path)["samples"] == 11


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "give a SOURCE, --config with a stream, --stream with a file, or --length"),
        (["{data}", "--config", "{config}"], 2, "give a SOURCE or --config, not both"),
        (["{data}", "--stream", "train"], 2, "a name of a configured stream goes with --config"),
        (["--config", "{config}", "--stream", "nope"], 2, "configured streams: rest, train"),
        (["--config", "{config}", "--batch-size", "3"], 2, "--batch-size belongs to a SOURCE"),
        (["--config", "{config}", "--seed", "0"], 2, "--seed belongs to a SOURCE"),
        (["--config", "{config}", "--suffix", "x"], 2, "--suffix belongs to a SOURCE"),
        (["--config", "{missing}"], 2, "does not exist: check the path"),
        (["{missing}"], 1, "missing does not exist"),
        (["{data}", "--suffix", ".jpg"], 1, "has no file whose name ends with .jpg"),
        (["ftp://bucket"], 2, "has scheme 'ftp': supported are file://"),
        (["http://[x"], 2, "uri='http://[x'"),
        (["{data}", "--batch-size", "0"], 2, "headrace plan: batch_size=0 is out of range: it"),
        (["{data}", "--batch-size", "1", "--global-batch-size", "1"], 2, "exactly one of"),
        (
            ["{data}", "--plan", "Sequential", "--seed", "1"],
            2,
            "--seed does not belong to --plan Sequential",
        ),
        (["{data}", "--seed", "-1"], 2, "seed=-1 is out of range"),
        (["{data}", "--rank", "2", "--world-size", "2"], 2, "rank=2 is out of range"),
        (["{data}", "--world-size", "0"], 2, "world_size=0 is out of range"),
        (["{data}", "--global-batch-size", "4", "--world-size", "3"], 2, "usable world sizes: 1"),
        (["{data}", "--batch-size", "20", "--tail", "drop"], 2, "tail='drop' leaves no step"),
        (["{data}", "--epoch", "-1"], 2, "--epoch -1: epochs are counted from 0"),
        (["{data}", "--steps", "x"], 2, "--steps 'x': write a step such as 7"),
        (["{data}", "--steps", "5:3"], 2, "the range must begin at 0 or later and not end before"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_in_one_line(
    folder: Path, data: Path, arguments: list[str], status: int, reason: str
) -> None:
    places = {"data": data, "missing": folder / "missing", "config": config(folder, data)}
    done = headrace_here("plan", *(argument.format(**places) for argument in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert reason in done.stderr
    assert done.stderr.startswith("headrace plan: ")
    assert done.stderr.count("\n") == 1


def test_a_state_folder_that_cannot_be_read_is_named(folder: Path, data: Path) -> None:
    path = config(folder, data)
    (folder / "state").write_text("a file")
    done = headrace("plan", "--config", path)
    assert done.returncode == 1
    assert "Not a directory" in done.stderr
    assert f"{folder}/state" in done.stderr


def test_a_range_of_any_length_is_written_as_it_is_planned_and_can_be_interrupted() -> None:
    words = ("--length", "1000000000", "--batch-size", "1", "--steps", "0:1000000000", "--json")
    with subprocess.Popen(
        [*HEADRACE, "plan", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        rows = (line for line in process.stdout if line.startswith('    {"epoch"'))
        for number in range(2000):
            assert json.loads(next(rows).rstrip().rstrip(","))["step"] == number
        assert psutil.Process(process.pid).memory_info().rss < 400 << 20
        process.send_signal(signal.SIGINT)
        for _ in process.stdout:
            pass
        assert process.stderr.read() == "headrace plan: interrupted\n"
        assert process.wait(DEADLINE_S) == 130


def test_a_far_step_of_a_far_epoch_is_reached_at_once() -> None:
    words = ("--length", "1000000007", "--plan", "Shuffled", "--batch-size", "10", "--json")
    for epoch, step in ((0, 99_000_000), (10**9, 99_000_000)):
        done = headrace_here("plan", *words, "--epoch", str(epoch), "--steps", str(step))
        (row,) = json.loads(done.stdout)["steps"]
        assert (row["epoch"], row["step"]) == (epoch, step)
        assert row["global_step"] == epoch * 100_000_001 + step


def test_several_ranks_are_shown_together(data: Path) -> None:
    facts = printed(data, "--batch-size", "2", "--world-size", "4", "--rank", "3,0:2")
    assert (facts["rank"], facts["ranks"]) == (None, [0, 1, 3])
    assert [row["rank"] for row in facts["steps"]][:6] == [0, 1, 3, 0, 1, 3]
