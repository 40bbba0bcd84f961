"""The bucket of the demo from the outside: made, kept, removed, and what cannot be done."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from headrace.buckets import Bucket
from headrace_daemon.demo import bucket as demo
from headrace_daemon.demo import files, signals
from headrace_daemon.demo.errors import DemoError
from headrace_daemon.demo.place import prepared
from headrace_daemon.demo.screen import Screen
from tests.support.standin import StandIn, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow  # each starts the keeper, which takes part of a second


@pytest.fixture(autouse=True)
def signals_are_as_before() -> Iterator[None]:
    """Undo that a demo which comes to its end ignores signals."""
    with signals.raised():
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as path:
        Path(path, files.SCRATCH).mkdir()
        yield Path(path)


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn(num_targets=2) as ais:
        yield ais


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def screen(shown: io.StringIO) -> Screen:
    return Screen(Console(file=shown, width=1000, highlight=False))


def has(ais: StandIn, root: str) -> bool:
    """Tell whether the stand-in has a bucket."""
    name = Bucket.parse(root).name
    with urllib.request.urlopen(f"{ais.endpoint}/v1/daemon?what=bmd", timeout=10) as answer:
        return name in json.load(answer)["providers"].get("ais", {}).get("@#", {})


def test_without_endpoint_the_images_are_files(folder: Path, screen: Screen) -> None:
    with prepared(folder, "", screen, keep=False) as place:
        assert place == (str(folder), "as files", {})


def test_bucket_is_there_meanwhile_and_gone_afterwards(
    ais: StandIn, folder: Path, screen: Screen, shown: io.StringIO
) -> None:
    with prepared(folder, ais.endpoint, screen, keep=False) as place:
        assert place.words == f"as objects in {place.root}, AIStore 5.0.standin, 2 targets"
        assert place.environ == {"AIS_ENDPOINT": ais.endpoint}
        assert has(ais, place.root)
    assert not has(ais, place.root)
    assert shown.getvalue() == f"removed     {place.root}\n"


def test_bucket_is_gone_after_a_failure(ais: StandIn, folder: Path, screen: Screen) -> None:
    with (
        pytest.raises(DemoError, match="on purpose"),
        prepared(folder, ais.endpoint, screen, keep=False) as place,
    ):
        raise DemoError("on purpose")
    assert not has(ais, place.root)


def test_kept_bucket_is_named_with_the_way_to_remove_it(
    ais: StandIn, folder: Path, screen: Screen, shown: io.StringIO
) -> None:
    with prepared(folder, ais.endpoint, screen, keep=True) as place:
        pass
    assert has(ais, place.root)
    assert shown.getvalue() == (
        f"kept        images: {place.root} at {ais.endpoint}; remove it with: "
        f"ais bucket rm {place.root}\n"
    )


def test_removal_is_tried_again(ais: StandIn, folder: Path, screen: Screen) -> None:
    fault = ais.fault(Status(503), proxy="any", method="DELETE", times=2)
    with prepared(folder, ais.endpoint, screen, keep=False) as place:
        pass
    assert fault.fired == 2
    assert not has(ais, place.root)


def test_bucket_that_cannot_be_removed_is_an_error_that_says_how_to(
    ais: StandIn, folder: Path, screen: Screen, shown: io.StringIO
) -> None:
    ais.fault(Status(403), proxy="any", method="DELETE", times=None)
    with (
        pytest.raises(DemoError, match=r"cannot be removed: proxy .* answered 403") as caught,
        prepared(folder, ais.endpoint, screen, keep=False) as place,
    ):
        pass
    assert str(caught.value).endswith(f"remove it with: ais bucket rm {place.root}")
    assert shown.getvalue() == f"left        {caught.value}\n"


def test_first_error_is_the_one_that_is_raised(
    ais: StandIn, folder: Path, screen: Screen, shown: io.StringIO
) -> None:
    ais.fault(Status(403), proxy="any", method="DELETE", times=None)
    with (
        pytest.raises(DemoError, match="on purpose"),
        prepared(folder, ais.endpoint, screen, keep=False),
    ):
        raise DemoError("on purpose")
    assert "cannot be removed" in shown.getvalue()


def test_bucket_that_may_not_be_made_is_said(ais: StandIn, folder: Path, screen: Screen) -> None:
    ais.fault(Status(403), proxy="any", method="POST")
    with (
        pytest.raises(DemoError, match=r"^bucket ais://\S+ cannot be made: .* answered 403") as e,
        prepared(folder, ais.endpoint, screen, keep=False),
    ):
        pass
    assert str(e.value).endswith("the demo needs the right to make and to remove a bucket")
    assert not [request for request in ais.requests if request.method == "DELETE"]


def test_cluster_that_is_down_or_wants_a_token_is_said(
    ais: StandIn, folder: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AIS_AUTHN_TOKEN", "AIS_AUTHN_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    ais.set_token("secret")
    with (
        pytest.raises(DemoError, match=r"^--endpoint: .* answered 401 .*no token was given"),
        prepared(folder, ais.endpoint, screen, keep=False),
    ):
        pass
    ais.proxies[0].stop()
    with (
        pytest.raises(DemoError, match=rf"^--endpoint: proxy {ais.endpoint} cannot be reached"),
        prepared(folder, ais.endpoint, screen, keep=False),
    ):
        pass


def test_objects_get_to_their_owners_past_a_proxy_that_wants_a_token(
    ais: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    ais.set_token("secret")
    monkeypatch.setenv("AIS_AUTHN_TOKEN", "secret")
    monkeypatch.setenv("AIS_ENDPOINT", ais.endpoint)
    bucket = demo.name_one()
    ais.create_bucket(bucket.name)
    images = {f"train/{number % 10}/{number:04}.pgm": bytes([number]) for number in range(50)}
    fill(bucket, images)
    for name, value in images.items():
        assert ais.stored(bucket.name, name).data == value
    for node in ais.targets:
        puts = {request.path for request in ais.requests if request.node == node.id}
        assert puts == {
            f"/v1/objects/{bucket.name}/{name}"
            for name in images
            if ais.owner(bucket.name, name) is node
        }
    # Connections are kept: not one for each object.
    assert len({request.connection for request in ais.requests}) < len(images)


@pytest.mark.parametrize("refuses", ["proxy", "target"])
def test_object_that_cannot_be_put_is_named(
    refuses: str, ais: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIS_ENDPOINT", ais.endpoint)
    bucket = demo.name_one()
    ais.create_bucket(bucket.name)
    if refuses == "proxy":
        ais.fault(Status(507), proxy="any", method="PUT", path="*/3")
    else:
        ais.fault(Status(507), target="any", method="PUT", path="*/3")
    with pytest.raises(DemoError, match=rf"^object {bucket}/3 cannot be put: http\S+ answered 507"):
        fill(bucket, {str(number): b"x" for number in range(40)})


def fill(bucket: Bucket, objects: dict[str, bytes]) -> None:
    """Put objects into a bucket of the cluster that ``$AIS_ENDPOINT`` names."""

    async def run() -> None:
        async with demo.client() as client:
            await demo.fill(client, bucket, objects.items())

    asyncio.run(run())
