"""`headrace demo --endpoint`: on the stand-in, and on a real cluster where there is one."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.demo import END_S, Demo, assert_tells_the_story
from tests.support.standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster

EPOCHS = ("--epochs", "5")
"""Enough to learn, and quick."""


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn() as ais:
        yield ais


@pytest.fixture
def no_sdk(tmp_path: Path) -> str:
    """Return a path for modules that hides the SDK of AIStore, if it is installed."""
    (tmp_path / "aistore.py").write_text("raise ImportError('hidden')\n")
    return str(tmp_path)


def demo_buckets(endpoint: str) -> list[str]:
    """Ask a cluster for the buckets that demos have made."""
    request = urllib.request.Request(
        f"{endpoint}/v1/buckets?provider=ais",
        json.dumps({"action": "list"}).encode(),
        {"Content-Type": "application/json"},
        method="GET",
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        names = [bucket["name"] for bucket in json.load(answer)]
    return [name for name in names if name.startswith("headrace-demo-")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_on_a_store_tells_the_same_story_and_leaves_no_bucket(
    ais: StandIn, no_sdk: str, folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder, "--endpoint", ais.endpoint, *EPOCHS, PYTHONPATH=no_sdk)
    demos.append(demo)
    status, errors = demo.finish(timeout_s=240)
    assert (status, errors) == (0, ""), demo.output
    assert_tells_the_story(demo)
    text = " ".join(demo.output.split())
    assert re.search(
        r"as objects in ais://headrace-demo-[0-9a-f]{8}, AIStore( [^ ,]+)?, 3 targets", text
    )
    assert "not measured: a comparison needs the SDK of AIStore: pip install 'aistore" in text
    # Objects came from the targets that own them, read by the daemon.
    assert any(r.method == "GET" and "/train/" in r.path for r in ais.requests)
    assert demo_buckets(ais.endpoint) == []
    assert demo.descendants() == []
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_on_a_real_cluster_tells_the_same_story_and_leaves_no_bucket(
    cluster: Cluster, folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder, "--endpoint", cluster.endpoint, *EPOCHS)
    demos.append(demo)
    status, errors = demo.finish(timeout_s=280)
    assert (status, errors) == (0, ""), demo.output
    assert_tells_the_story(demo)
    text = " ".join(demo.output.split())
    assert re.search(r"ais://headrace-demo-[0-9a-f]{8}, AIStore \d+\.\d+\S*, 3 targets", text)
    assert "not measured" in text or re.search(r"daemon / best native = \d+\.\d\d", text)
    assert demo_buckets(cluster.endpoint) == []
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "A model learns"),
        (signal.SIGINT, "on a socket of its own"),
        (signal.SIGKILL, "on a socket of its own"),
    ],
)
def test_stopped_demo_leaves_no_bucket(
    number: signal.Signals, moment: str, ais: StandIn, folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder, "--endpoint", ais.endpoint)
    demos.append(demo)
    demo.read_until(moment, timeout_s=60)
    started = demo.descendants()
    demo.process.send_signal(number)
    status, errors = demo.finish(2 * END_S)
    if number is signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number
        assert errors == (
            f"headrace demo: stopped by {number.name}; processes ended, files removed\n"
        )
    # Nobody else is there to remove it after SIGKILL but the process that has made it.
    assert psutil.wait_procs(started, timeout=2 * END_S)[1] == []
    assert demo_buckets(ais.endpoint) == []
    assert demo.descendants() == []
    assert list(folder.iterdir()) == []
