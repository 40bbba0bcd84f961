"""Settings: what an operator may decide, checked once, at the edge.

A configuration is a TOML file whose tables are the structs below.  Every key is checked; a wrong
one is named with its path, its value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args, get_type_hints

import msgspec

from headrace.client import DEFAULT_SOCKET
from headrace.plans import Plan
from headrace.sources import Objects, Stream

from .errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

_UNITS: Final = {"": 1, "B": 1}
_UNITS.update({f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)})
_UNITS.update({f"{letter}B": 1000**power for power, letter in enumerate(("k", "M", "G", "T"), 1)})
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Return a number of bytes written as ``"512MiB"``, ``"2GB"`` or a plain integer.

    Raises:
        ValueError: If it is no size, or below one byte.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"{text!r} is no size: write bytes as an integer, or a string such as '512MiB' or "
            f"'2GB' (units: {', '.join(unit for unit in _UNITS if unit)})"
        )
    size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"{text!r} is too small: a size is at least 1 byte")
    return size


_T = TypeVar("_T")
_PLANS: Final = {str(plan.__struct_config__.tag) for plan in get_args(Plan)}


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of a configuration."""


def _default_state_dir() -> str:
    # systemd sets the first for a unit with StateDirectory=; the others are the XDG rules.
    environ = os.environ
    if "STATE_DIRECTORY" in environ:
        return environ["STATE_DIRECTORY"].split(":")[0]
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "headrace")


class DaemonSettings(_Table, frozen=True, kw_only=True):
    """``[daemon]``: the socket, the memory, the state."""

    socket: str = DEFAULT_SOCKET
    """Path of the Unix socket."""

    group: str = ""
    """Group that may connect (the socket has mode 0660); empty: the group of the process."""

    memory: str | int = "1GiB"
    """Bytes for slots and staging of all feeds together; the process itself comes on top."""

    state_dir: str = msgspec.field(default_factory=_default_state_dir)
    """Where manifests are kept."""

    max_connections: int = 256
    """Connections at a time; one more is told so and closed."""

    grace_s: float = 30.0
    """How long the feed of a living process waits for a lost connection to come back, seconds."""

    drain_s: float = 3.0
    """How long a stop waits for ready batches to be taken, seconds."""

    @property
    def memory_bytes(self) -> int:
        """The memory budget in bytes."""
        return parse_size(self.memory)

    def __post_init__(self) -> None:
        try:
            parse_size(self.memory)
        except ValueError as error:
            raise SettingsValueError("memory", str(error)) from None
        if not self.socket:
            raise SettingsValueError("socket", "'' is no path")
        _check_range("max_connections", self.max_connections, 1, 100_000)
        _check_range("grace_s", self.grace_s, 0, 3600)
        _check_range("drain_s", self.drain_s, 0, 3600)


class FetchSettings(_Table, frozen=True, kw_only=True):
    """``[fetch]``: how hard the daemon pulls."""

    max_in_flight: int = 16
    """Groups of reads under way at a time, over all feeds; for folders, also reading threads."""

    def __post_init__(self) -> None:
        _check_range("max_in_flight", self.max_in_flight, 1, 1024)


class TrustSettings(_Table, frozen=True, kw_only=True):
    """``[trust]``: who may ask for what."""

    allow_sources: tuple[str, ...] = ()
    """Folders below which clients may open streams of their own; ``"*"`` allows all.  Streams of
    the configuration are always allowed."""

    allow_uids: tuple[int, ...] | None = None
    """User ids that may connect; by default whoever the mode of the socket lets in."""


class Settings(_Table, frozen=True, kw_only=True):
    """A whole configuration."""

    daemon: DaemonSettings = msgspec.field(default_factory=DaemonSettings)
    fetch: FetchSettings = msgspec.field(default_factory=FetchSettings)
    trust: TrustSettings = msgspec.field(default_factory=TrustSettings)
    streams: dict[str, Stream] = {}
    """``[streams.NAME]``: streams that clients open by name."""

    default_stream: str = ""
    """Name of the stream of clients that name none."""

    def __post_init__(self) -> None:
        if self.default_stream and self.default_stream not in self.streams:
            raise SettingsValueError(
                "default_stream",
                f"{self.default_stream!r} is not configured; allowed: "
                f"{', '.join(sorted(self.streams)) or 'none, as there is no [streams.NAME] table'}",
            )


class SettingsValueError(ValueError):
    """A single value is wrong; msgspec adds the path of its table."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")


def _check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingsValueError(key, f"{value!r} is out of range, allowed: {low}..{high}")


def load(path: Path) -> Settings:
    """Read a configuration file.

    Raises:
        SettingsError: Naming the file, the key, its value and what is allowed.
    """
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise SettingsError(f"configuration {path} does not exist: check the path") from None
    except OSError as error:
        raise SettingsError(f"configuration {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"configuration {path} is not TOML: {error}") from None
    return parse(data, origin=str(path))


def parse(data: dict[str, Any], *, origin: str) -> Settings:
    """Check a configuration that was read from somewhere.

    Raises:
        SettingsError: Naming the origin, the key, its value and what is allowed.
    """
    _check_keys(data, Settings, "", origin)
    streams = data.get("streams", {})
    if isinstance(streams, dict):
        # One by one: within a dictionary msgspec does not say which.
        for name, stream in streams.items():
            _convert(stream, Stream, f"streams.{name}", origin)
    return _convert(data, Settings, "", origin)


def _convert(data: object, kind: type[_T], path: str, origin: str) -> _T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{origin}: {_explain(data, path, str(error))}") from None


def _check_keys(data: object, struct: type[msgspec.Struct], path: str, origin: str) -> None:
    """Refuse keys that no table has, with the nearest that it has."""
    if not isinstance(data, dict):
        return
    fields = {field.encode_name: field.name for field in msgspec.structs.fields(struct)}
    tag = struct.__struct_config__.tag_field
    allowed = [*fields, *([tag] if tag else [])]
    types = get_type_hints(struct)
    for key, value in data.items():
        where = f"{path}.{key}" if path else key
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise SettingsError(
                f"{origin}: {where} = {value!r}: unknown key{hint}; allowed here: "
                f"{', '.join(sorted(allowed))}"
            )
        if key == tag:
            continue
        if struct is Settings and key == "streams" and isinstance(value, dict):
            for name, stream in value.items():
                _check_keys(stream, Stream, f"{where}.{name}", origin)
        else:
            chosen = _struct_of(types[fields[key]], value)
            if chosen is not None:
                _check_keys(value, chosen, where, origin)


def _struct_of(kind: object, value: object) -> type[msgspec.Struct] | None:
    """Return the struct that a value of an annotated field would become, if it is one."""
    for option in get_args(kind) or (kind,):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            tag = option.__struct_config__.tag
            if tag is None or option is Objects:
                return option
            if isinstance(value, dict) and value.get("type") == tag:
                return option
    return None


_AT: Final = re.compile(r" - at `\$\.?(.*)`$")
_KEY: Final = re.compile(r"(\w+): ")


def _explain(data: Any, path: str, message: str) -> str:  # noqa: ANN401 - whatever TOML holds
    """Turn msgspec's sentence into one that begins with the path and shows the value."""
    at = _AT.search(message)
    text = message[: at.start()] if at else message
    keys = re.findall(r"\w+", at[1]) if at else []
    key = _KEY.match(text)
    if key is not None:  # a table has checked one of its own values
        keys.append(key[1])
        text = text[key.end() :]
    value = data
    for part in keys:
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            value = None
    where = ".".join([*([path] if path else []), *keys])
    shown = "" if value is None or isinstance(value, dict) else f" = {value!r}"
    if where.endswith("plan.type"):
        text = f"unknown plan; allowed: {', '.join(sorted(_PLANS))}"
    return f"{where}{shown}: {text}" if where else text
