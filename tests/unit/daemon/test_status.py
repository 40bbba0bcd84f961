"""``headrace status``: what a running daemon does, for people and for programs."""

from __future__ import annotations

import io
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from headrace.client import Channel
from headrace.protocol import Payload
from headrace.protocol import messages as m
from headrace_daemon import __version__
from headrace_daemon.commands.status import _duration, _show_stage, _verdict
from tests.support.commands import environment, headrace, headrace_without_rights, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.commands import Serving


@pytest.fixture
def folder(socket_path: Path) -> Path:
    return socket_path.parent


@pytest.fixture
def daemon(folder: Path) -> Iterator[Serving]:
    data = folder / "with [bold] and :smile:"
    data.mkdir()
    for number in range(8):
        (data / f"{number}.bin").write_bytes(bytes(100))
    path = folder / "headrace.toml"
    path.write_text(
        f"""
        default_stream = "train"
        daemon.state_dir = "{folder}/state"
        trust.allow_sources = ["{folder}"]
        [streams.train]
        source = {{ uri = "{data}" }}
        plan = {{ type = "Sequential", batch_size = 2 }}
        [streams.valid]
        source = {{ uri = "{data}" }}
        plan = {{ type = "Sequential", batch_size = 1 }}
        """
    )
    with serving("--config", path, "--socket", folder / "s", "--memory", "1MB") as running:
        yield running


def report(folder: Path) -> dict[str, Any]:
    done = headrace("status", "--socket", folder / "s", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_an_idle_daemon_is_shown(daemon: Serving, folder: Path) -> None:
    done = headrace("status", "--socket", folder / "s")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"headrace {__version__} (protocol 1), pid {daemon.process.pid}, up")
    assert lines[1:] == [
        "memory   0 bytes held, 0 bytes promised, 1.0 MB budget",
        "store    none configured",
        "streams  train (default), valid",
        "feeds    none",
    ]


def test_feeds_are_shown_with_their_place_and_their_memory(daemon: Serving, folder: Path) -> None:
    with Channel.connect(os.fspath(folder / "s")) as channel:
        channel.send(m.Open(credit=2, prefetch=3, rank=1, world_size=2))
        while not isinstance(channel.receive(), Payload):
            pass
        assert isinstance(channel.receive(), Payload)
        answer = report(folder)
        assert (answer["pid"], answer["connections"]) == (daemon.process.pid, 2)
        assert (answer["streams"], answer["default_stream"]) == (["train", "valid"], "train")
        (feed,) = answer["feeds"]
        place = ("stream", "rank", "world_size", "epoch", "step", "is_parked")
        # The cursor after the second step of two is the start of the next epoch.
        assert [feed[name] for name in place] == ["train", 1, 2, 1, 0, False]
        assert (feed["slot_bytes"], feed["max_slots"]) == (256, 4)
        assert (feed["batches"], feed["samples"], feed["bytes"]) == (2, 4, 456)
        assert answer["memory"]["guaranteed_bytes"] == 512
        assert answer["memory"]["budget_bytes"] == 1_000_000
        shown = headrace("status", "--socket", folder / "s").stdout
        row = next(line for line in shown.splitlines() if line.startswith("train "))
        assert row.split()[1:4] == ["1/2", "1", "0"]
        assert "256 bytes" in row


def test_a_feed_without_a_name_is_shown_by_its_source(daemon: Serving, folder: Path) -> None:
    source = folder / "with [bold] and :smile:"
    stream = {"source": {"uri": os.fspath(source)}, "plan": {"type": "Sequential", "batch_size": 1}}
    with Channel.connect(os.fspath(folder / "s")) as channel:
        channel.send(m.Open(stream=stream))
        assert isinstance(channel.receive(), m.Opened)
        wide = environment(COLUMNS="300")
        shown = headrace("status", "--socket", folder / "s", env=wide).stdout
        assert f"{source} " in shown


def test_json_is_whole_on_a_narrow_terminal(daemon: Serving, folder: Path) -> None:
    done = headrace("status", "--socket", folder / "s", "--json", env=environment(COLUMNS="10"))
    assert json.loads(done.stdout)["version"] == __version__


def test_the_socket_may_be_named_by_the_environment(daemon: Serving, folder: Path) -> None:
    done = headrace("status", env=environment(HEADRACE_SOCKET=os.fspath(folder / "s")))
    assert done.returncode == 0
    assert f"pid {daemon.process.pid}" in done.stdout


# ---- without a daemon ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "stale", "too long"])
def test_a_socket_where_no_daemon_is_gets_one_line(folder: Path, kind: str) -> None:
    path = folder / "s"
    match kind:
        case "file":
            path.write_text("")
        case "folder":
            path.mkdir()
        case "stale":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(os.fspath(path))
        case "too long":
            path = folder / ("x" * 200)
    done = headrace("status", "--socket", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert os.fspath(path) in done.stderr
    advice = "the system allows 107" if kind == "too long" else "start one with 'headrace serve'"
    assert advice in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_socket_without_permission_is_named_with_its_owner(daemon: Serving, folder: Path) -> None:
    folder.chmod(0o711)
    (folder / "s").chmod(0)
    done = headrace_without_rights("status", "--socket", folder / "s")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no permission to connect to socket {folder}/s (mode 0000, uid" in done.stderr


# ---- the verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waits", "verdict"),
    [
        ((0.0, 0.0, 0.0), "nobody yet"),
        ((3.0, 1.0, 0.0), "the trainer (75%)"),
        ((1.0, 3.0, 0.0), "the source (75%)"),
        ((0.0, 0.0, 2.0), "the socket (100%)"),
    ],
)
def test_the_verdict_names_who_was_waited_for_most(
    waits: tuple[float, float, float], verdict: str
) -> None:
    names = ("waited_for_credit_s", "waited_for_bytes_s", "sending_s")
    feed: dict[str, Any] = dict(zip(names, waits, strict=True))
    assert _verdict({**feed, "is_parked": False}) == verdict
    assert _verdict({**feed, "is_parked": True}) == "its client, which lost its connection"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 min 0 s"), (61, "1 min 1 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_what_the_stage_has_read_again_may_be_more_than_it_has_read() -> None:
    target = io.StringIO()
    stage = {"pieces": 2, "bytes": 3000, "again_bytes": 5000, "held_bytes": 0, "hits": 7}
    _show_stage(Console(file=target, width=200), stage)
    assert "3.0 kB read in 2 pieces, 5.0 kB again, 7 values taken from there" in target.getvalue()
