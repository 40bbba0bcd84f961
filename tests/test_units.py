"""House rule: the units of systemd say what the code relies on, and systemd accepts them."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
import typing
from pathlib import Path

import msgspec
import pytest

from headrace.client import DEFAULT_SOCKET
from headrace.plans import Shuffled
from headrace.sources import Objects, Stream
from headrace_daemon.commands import serve
from headrace_daemon.settings import Settings, parse
from headrace_daemon.transport import listener
from tests.support.units import FOLDER, only, read

SERVICES = ["headrace.service", "headrace@.service"]
SOCKETS = ["headrace.socket", "headrace@.socket"]
EXPOSURE = 2.0
"""What `systemd-analyze security` says at most, of 10."""


# ---- what the code relies on ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_the_service_says_what_the_daemon_relies_on(name: str) -> None:
    service = read(name)["Service"]
    expected = {
        "Type": "notify",  # READY=1, RELOADING=1, STOPPING=1
        "NotifyAccess": "main",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "Restart": "on-failure",
        "User": "headrace",
        "Group": "headrace",
        "ProtectSystem": "strict",  # all but the StateDirectory is read only
    }
    assert {key: service[key] for key in expected} == {key: [v] for key, v in expected.items()}
    assert float(service["WatchdogSec"][0]) >= 10, "planning may hold the interpreter for seconds"
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} == set(service["RestrictAddressFamilies"][0].split())
    for key, reason in {
        "RuntimeDirectory": "it would be removed at the end, with the socket in it",
        "PrivateUsers": "all users that connect would look the same",
        "PrivateNetwork": "the store could not be reached",
        "DynamicUser": "nobody could give data to the user",
    }.items():
        assert key not in service, reason


@pytest.mark.parametrize(("name", "socket"), list(zip(SERVICES, SOCKETS, strict=True)))
def test_the_service_always_comes_with_its_socket(name: str, socket: str) -> None:
    unit, own = read(name), socket.replace("@.", "@%i.")
    assert only(unit, "Unit", "Requires") == own
    assert own in only(unit, "Unit", "After").split()
    assert only(unit, "Install", "Also") == own
    assert only(unit, "Unit", "StartLimitIntervalSec") == "0", "or its socket fails with it"


@pytest.mark.parametrize("name", SOCKETS)
def test_the_socket_is_one_that_the_daemon_takes(name: str) -> None:
    socket = read(name)["Socket"]
    (path,) = socket["ListenStream"]
    assert path == (DEFAULT_SOCKET if "@" not in name else "/run/headrace/%i.sock")
    assert socket["SocketMode"] == ["0660"]
    assert socket["SocketGroup"] == ["headrace"]
    assert socket["Backlog"] == [str(listener.BACKLOG)]
    assert "Accept" not in socket
    assert only(read(name), "Install", "WantedBy") == "sockets.target"


def test_the_templates_differ_by_their_instance_only() -> None:
    for plain, template in zip((SERVICES[0], SOCKETS[0]), (SERVICES[1], SOCKETS[1]), strict=True):
        ours, theirs = read(plain), read(template)
        assert list(ours) == list(theirs)
        for section, options in ours.items():
            assert list(options) == list(theirs[section])
            for key, values in options.items():
                if key != "Description" and values != theirs[section][key]:
                    assert "%i" in " ".join(theirs[section][key]), key


def test_the_readme_names_every_file_and_no_other() -> None:
    table = re.findall(r"^\| (`.*?) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    files = {name for cell in table[:5] for name in re.findall(r"`([^`]+)`", cell)}
    assert files == {path.name for path in FOLDER.iterdir()} - {"README.md"}


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_the_command_line_is_one_that_the_daemon_understands(name: str) -> None:
    program, command, *arguments = shlex.split(only(read(name), "Service", "ExecStart"))
    assert (program, command) == ("/opt/headrace/bin/headrace", "serve")
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    options = parser.parse_args(arguments)
    name_of = "%i" if "@" in name else "headrace"
    assert options.config == Path(f"/etc/headrace/{name_of}.toml")
    assert (options.socket, options.private) == (None, None), "the .socket unit decides"


# ---- the configuration ---------------------------------------------------------------------------


CONFIG = (FOLDER / "headrace.toml").read_text()


def uncommented() -> str:
    """Return the configuration with every key taken in."""
    return re.sub(r"^#(?=[a-z\[])", "", CONFIG, flags=re.MULTILINE)


def test_the_configuration_is_valid_as_it_is_shipped() -> None:
    settings = parse(tomllib.loads(CONFIG), origin="headrace.toml")
    assert settings == Settings()


def test_the_configuration_is_valid_with_every_key_taken_in() -> None:
    settings = parse(tomllib.loads(uncommented()), origin="headrace.toml")
    assert isinstance(settings.streams["train"], Stream)
    assert settings.default_stream == "train"


def test_the_configuration_has_every_key_and_explains_it() -> None:
    data = tomllib.loads(uncommented())
    wanted = {field.name for field in msgspec.structs.fields(Settings)}
    assert set(data) == wanted
    types = typing.get_type_hints(Settings)
    for table in wanted - {"streams", "default_stream"}:
        fields = {field.name for field in msgspec.structs.fields(types[table])}
        assert set(data[table]) == fields, table
    stream = data["streams"]["train"]
    # Those of streamed shards do not go with the source that is shown; the words name them.
    streamed = {"max_sample_bytes", "steps_per_epoch"}
    assert {*stream, *streamed} == {field.name for field in msgspec.structs.fields(Stream)}
    assert all(f" {key} = " in CONFIG for key in streamed)
    source = {field.name for field in msgspec.structs.fields(Objects)}
    assert set(stream["source"]) == {*source, "type"}
    assert set(stream["plan"]) <= {field.name for field in msgspec.structs.fields(Shuffled)} | {
        "type"
    }
    for before, line in itertools.pairwise(CONFIG.splitlines()):
        if re.match(r"#[a-z]", line):
            assert before.startswith("# "), f"{line} has no explanation"


def test_what_is_shown_as_a_default_is_the_default() -> None:
    data, defaults = tomllib.loads(uncommented()), Settings()
    for table, key in [
        *(("daemon", key) for key in ("socket", "memory", "max_connections", "grace_s", "drain_s")),
        ("fetch", "max_in_flight"),
        *(("store", key) for key in ("direct", "deadline_s", "stall_s")),
    ]:
        assert data[table][key] == getattr(getattr(defaults, table), key), key


# ---- what systemd thinks -------------------------------------------------------------------------


@pytest.fixture
def analyze(tmp_path: Path) -> str:
    """Return the program, and put the units where it may read them, with a program that exists."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on PATH")
    headrace = Path(sysconfig.get_path("scripts")) / "headrace"
    for name in SERVICES + SOCKETS:
        text = (FOLDER / name).read_text().replace("/opt/headrace/bin/headrace", str(headrace))
        (tmp_path / name).write_text(text)
    return program


def test_systemd_accepts_the_units(analyze: str, tmp_path: Path) -> None:
    # Of a template an instance is looked at.
    for name in SERVICES + SOCKETS:
        if "@" in name:
            (tmp_path / name.replace("@", "@node0")).symlink_to(tmp_path / name)
    units = [tmp_path / name.replace("@", "@node0") for name in SERVICES + SOCKETS]
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, timeout=50
    )
    ours = [line for line in done.stderr.splitlines() if "headrace" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_rates_the_sandbox_well(analyze: str, tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [
            analyze,
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={round(EXPOSURE * 10)}",
            tmp_path / name,
        ],
        capture_output=True,
        text=True,
        timeout=50,
    )
    if "unrecognized option" in done.stderr:  # before version 250
        pytest.skip("systemd-analyze cannot rate a file")
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_makes_the_user(tmp_path: Path) -> None:
    program = shutil.which("systemd-sysusers")
    if program is None:
        pytest.skip("no systemd-sysusers on PATH")
    (tmp_path / "etc").mkdir()
    command = [program, f"--root={tmp_path}", str(FOLDER / "sysusers.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "etc/passwd").read_text().startswith("headrace:")
    assert (tmp_path / "etc/group").read_text().startswith("headrace:")
