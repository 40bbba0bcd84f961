"""The files of a cluster: what its nodes are called, where they listen, how they are configured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .machine import CONTROL, DATA, PUBLIC

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NUM_DISKS: Final = 2
"""Folders of one target; each counts as a disk."""

_CONFIG: Final[Mapping[str, Mapping[str, Any]]] = {
    "backend": {},
    "auth": {},
    "timeout": {
        "cplane_operation": "2s",
        "max_keepalive": "5s",
        "cold_get_conflict": "5s",
        "max_host_busy": "20s",
        "startup_time": "30s",  # the least that a node accepts
        "join_startup_time": "3m",
        "send_file_time": "5m",
        "ec_streams_time": "10m",
        "object_md": "2h",
    },
    "space": {
        "cleanupwm": 90,
        "lowwm": 95,
        "highwm": 98,
        "out_of_space": 99,
        "batch_size": 32_768,
        "dont_cleanup_time": "120m",
    },
    "resilver": {"enabled": True},
    "versioning": {"enabled": True, "validate_warm_get": False},
    # With the default of 2 GB a small machine is soon short of memory, and batches are refused.
    "memsys": {
        "min_free": "200mb",
        "default_buf": "32kb",
        "to_gc": "4gb",
        "hk_time": "3m",
        "min_pct_total": 0,
        "min_pct_free": 0,
    },
    "net": {
        "l4": {"proto": "tcp", "sndrcv_buf_size": 131_072},
        "http": {
            "use_https": False,
            "server_crt": "",
            "server_key": "",
            "domain_tls": "",
            "client_ca_tls": "",
            "client_auth_tls": 0,
            "idle_conn_time": "6s",
            "idle_conns_per_host": 32,
            "idle_conns": 256,
            "write_buffer_size": 65_536,
            "read_buffer_size": 65_536,
            "chunked_transfer": True,
            "skip_verify": False,
        },
        "use_ipv6": False,
    },
}
"""The sections without which a node does not start, and what small machines need."""

_HEARTBEAT: Final = {"interval": "1s", "name": "heartbeat", "factor": 2}
QUICK: Final[Mapping[str, Mapping[str, Any]]] = {
    "keepalivetracker": {
        "proxy": _HEARTBEAT,
        "target": _HEARTBEAT,
        "num_retries": 1,
        "retry_factor": 1,
    },
    "timeout": {"cplane_operation": "1s", "max_keepalive": "2s"},
}
"""A configuration with which the proxy misses a dead target after some 2 s, not after 22 to 37."""


@dataclass(frozen=True, slots=True)
class Node:
    """One process of a cluster.

    Args:
        name: Its id in the cluster map; at least eight characters, or it does not start.
        role: What it is, ``proxy`` or ``target``.
        port: Where it listens, the same on three addresses.  A port of its own for the
            public address would have it listen to the whole network there.
        folder: All that it writes.
    """

    name: str
    role: str
    port: int
    folder: Path

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://{PUBLIC}:{self.port}"

    @property
    def control_url(self) -> str:
        """Where the other nodes find it."""
        return f"http://{CONTROL}:{self.port}"

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self.folder / "output.log"

    def command(self, aisnode: str, config: Path, *, num_targets: int) -> list[str]:
        """Return the command line that starts it."""
        return [
            aisnode,
            f"-role={self.role}",
            f"-daemon_id={self.name}",
            f"-config={config}",
            f"-local_config={self.folder / 'local.json'}",
            # In a new folder there is no earlier map to wait for: ready after 3 s, not 11.
            *([f"-ntargets={num_targets}", "-skip_startup"] if self.role == "proxy" else []),
        ]

    def write(self) -> None:
        """Make its folder, with its own configuration."""
        for name in ("conf", "log"):
            (self.folder / name).mkdir(parents=True)
        port = str(self.port)
        local = {
            "confdir": str(self.folder / "conf"),
            "log_dir": str(self.folder / "log"),
            "host_net": {
                "hostname": PUBLIC,
                "hostname_intra_control": CONTROL,
                "hostname_intra_data": DATA,
                "port": port,
                "port_intra_control": port,
                "port_intra_data": port,
            },
            "fspaths": {},
            "test_fspaths": {
                "root": str(self.folder / "data"),
                "count": _NUM_DISKS if self.role == "target" else 0,
                "instance": 1,
            },
        }
        (self.folder / "data").mkdir()
        (self.folder / "local.json").write_text(json.dumps(local))


def write_config(path: Path, primary_url: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the configuration that all nodes share.

    Args:
        path: The file.
        primary_url: The control address of the first proxy.
        changes: Values by section, in place of ours.
    """
    proxy = {
        "primary_url": primary_url,
        "original_url": primary_url,
        "discovery_url": "",
        "non_electable": False,
    }
    config = {**_CONFIG, "proxy": proxy}
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values}
    path.write_text(json.dumps(config))
