"""`headrace demo --endpoint`: on the stand-in, and on a real cluster where there is one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from headrace_daemon.demo import digits
from headrace_daemon.demo.files import TRAIN
from tests.support.cluster import find_aisnode
from tests.support.demo import END_S, Demo, assert_tells_the_story
from tests.support.standin import StandIn
from tests.support.stores import Store

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


@pytest.fixture
def server(request: pytest.FixtureRequest) -> StandIn | Cluster:
    """Return a real cluster where there can be one: a demo loads torch twice, and takes long."""
    name = "ais" if find_aisnode() is None else "cluster"
    server: StandIn | Cluster = request.getfixturevalue(name)
    return server


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_on_a_store_tells_the_same_story_and_leaves_no_bucket(
    server: StandIn | Cluster, no_sdk: str, folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder, "--endpoint", server.endpoint, *EPOCHS, PYTHONPATH=no_sdk)
    demos.append(demo)
    status, errors = demo.finish(timeout_s=240)
    assert (status, errors) == (0, ""), demo.output
    assert_tells_the_story(demo)
    text = " ".join(demo.output.split())
    assert re.search(
        r"as objects in ais://headrace-demo-[0-9a-f]{8}, AIStore( [^ ,]+)?, 3 targets", text
    )
    assert "not measured: a comparison needs the SDK of AIStore: pip install 'aistore" in text
    assert demo_buckets(server.endpoint) == []
    assert demo.descendants() == []
    assert list(folder.iterdir()) == []


MEASURE: Final = """
import sys
from headrace_daemon.demo import race
measured = race.run(sys.argv[1], sys.argv[2], lambda report: None)
for result in (measured.daemon, *measured.natives):
    print(result.name, len(result.samples_per_s), min(result.samples_per_s) > 0, sep=": ")
print(measured.note)
"""


@pytest.mark.slow
def test_the_daemon_is_measured_beside_the_dataset_of_the_sdk(server: StandIn | Cluster) -> None:
    """On three batches: what a whole demo reads takes the SDK minutes on a busy machine."""
    store = Store(server)
    images = [item for item in digits.images().items() if item[0].startswith(TRAIN)]
    store.put(dict(images[: 3 * digits.BATCH_SIZE]))
    with store.daemon() as app:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, f"ais://{store.bucket}", app.socket],
            env={**os.environ, "AIS_ENDPOINT": store.endpoint},
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
        # Objects came from the targets that own them, read by the daemon.
        assert app.call(app.app.report)["store"]["way"] == "direct"
    assert done.returncode == 0, done.stderr
    names = ["daemon", *(f"DataLoader, num_workers={number}" for number in range(3))]
    assert done.stdout.splitlines()[:-1] == [f"{name}: 3: True" for name in names]
    assert "AISMapDataset of the SDK" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "A model learns"),
        (signal.SIGINT, "on a socket of its own"),
        (signal.SIGKILL, "begins at epoch 0 step 0"),
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
