"""What a cluster needs of the machine: the program, addresses, ports, a folder, an environment."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping

PUBLIC: Final = "127.0.0.1"
CONTROL: Final = "127.0.0.2"
DATA: Final = "127.0.0.3"

_PORTS: Final = range(18_000, 30_000)
"""Below the range from which systems take the ports of outgoing connections."""
_MAX_USED_PERCENT: Final = 90.0
"""Nodes count the whole filesystem, and start to clean up when it is fuller than this."""


class ClusterError(Exception):
    """A cluster could not be started, or did not do what it was told; says why."""


def find_aisnode() -> str | None:
    """Return the path of the program named by ``$HEADRACE_AISNODE``, or else found on PATH.

    Returns:
        None if there is no such program.

    Raises:
        ClusterError: The variable names something that cannot be executed.
    """
    named = os.environ.get("HEADRACE_AISNODE")
    found = shutil.which(named or "aisnode")
    if named and not found:
        raise ClusterError(
            f"HEADRACE_AISNODE is {named!r}, which is no program: name one, or unset the variable"
        )
    return found


def add_addresses() -> None:
    """Add the addresses of the nodes' own traffic to the loopback interface, where they stay.

    That they answer is not enough for a node: it looks for them in the list.

    Raises:
        ClusterError: It cannot be done.
    """
    listed = {address.address for address in psutil.net_if_addrs().get("lo", [])}
    for address in (CONTROL, DATA):
        if address in listed:
            continue
        command = ["ip", "address", "add", f"{address}/8", "dev", "lo"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            problem = done.stderr.strip() if done.returncode else ""
        except OSError as error:
            problem = str(error)
        if problem and "File exists" not in problem:  # another one was faster
            raise ClusterError(
                f"a cluster needs the address {address} on lo, and it cannot be added ({problem}): "
                f"run '{' '.join(command)}' as root"
            )


def free_ports(number: int) -> list[int]:
    """Return ports that are free on all addresses just now.

    Raises:
        ClusterError: There are too few.
    """
    free: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if all(_is_free(address, port) for address in (PUBLIC, CONTROL, DATA)):
            free.append(port)
        if len(free) == number:
            return free
    raise ClusterError(f"{number} free ports are needed, and there are {len(free)} in {_PORTS}")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def make_folder(parent: Path | None = None) -> Path:
    """Make a folder in which nodes can store objects.

    Args:
        parent: Where; without it the first of the usual places that will do.

    Raises:
        ClusterError: None will do.
    """
    usual = [Path(tempfile.gettempdir()), Path("/dev/shm"), Path("/var/tmp")]
    problems = []
    for place in [parent] if parent else usual:
        problem = _what_is_wrong_with(place)
        if not problem:
            return Path(tempfile.mkdtemp(prefix="headrace-ais-", dir=place))
        problems.append(f"{place}: {problem}")
    raise ClusterError(f"there is no place for a cluster's data ({'; '.join(problems)})")


def _what_is_wrong_with(place: Path) -> str:
    """Return why a node cannot store objects there; empty if it can."""
    try:
        used_percent = psutil.disk_usage(str(place)).percent
        with tempfile.NamedTemporaryFile(dir=place) as probe:
            os.setxattr(probe.name, "user.headrace", b"1")
    except OSError as error:
        return f"no user attributes of files ({error})"
    if used_percent > _MAX_USED_PERCENT:
        return f"{used_percent:g} % full, and the limit is {_MAX_USED_PERCENT:g} %"
    return ""


def clean_environment() -> Mapping[str, str]:
    """Return this process's environment without what changes a node's endpoint, id or network."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AIS_") and name != "MY_POD"
    }
