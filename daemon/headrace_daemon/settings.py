"""Settings: what an operator may decide, checked once, at the edge.

A configuration is a TOML file whose tables are the structs below.  Every key is checked; a wrong
one is named with its path, its value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from itertools import chain
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from headrace.client import DEFAULT_SOCKET
from headrace.errors import PlanError
from headrace.plans.dictated import Dictated
from headrace.sources import Objects, Stream, typed

from .errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

_UNITS: Final = {"": 1, "B": 1}
_UNITS.update({f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)})
_UNITS.update({f"{letter}B": 1000**power for power, letter in enumerate(("k", "M", "G", "T"), 1)})
_MAX_SIZE: Final = 1 << 50
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Return a number of bytes written as ``"512MiB"``, ``"2GB"`` or a plain integer.

    Raises:
        ValueError: If it is no size, or out of range.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"{text!r} is no size: write bytes as an integer, or a string such as '512MiB' or "
            f"'2GB' (units: {', '.join(unit for unit in _UNITS if unit)})"
        )
    size = float(match[1]) * _UNITS[match[2]]
    if not 1 <= size <= _MAX_SIZE:
        raise ValueError(
            f"{text!r} is out of range: a size is 1 byte at least and 1024 TiB at most"
        )
    return int(size)


_T = TypeVar("_T")


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
        if not self.state_dir:
            raise SettingsValueError("state_dir", "'' is no folder")
        _check_range("max_connections", self.max_connections, 1, 100_000)
        _check_range("grace_s", self.grace_s, 0, 3600)
        _check_range("drain_s", self.drain_s, 0, 3600)


class FetchSettings(_Table, frozen=True, kw_only=True):
    """``[fetch]``: how hard the daemon pulls."""

    max_in_flight: int = 16
    """Groups of reads under way at a time, over all feeds; for folders, also reading threads."""

    stage: float = 0.25
    """Share of ``[daemon] memory`` in which windows of shards are staged, as far as no feed has
    been promised it; two windows must fit for that.  0: none are."""

    def __post_init__(self) -> None:
        _check_range("max_in_flight", self.max_in_flight, 1, 1024)
        _check_range("stage", self.stage, 0, 1)


class StoreSettings(_Table, frozen=True, kw_only=True):
    """``[store]``: the AIStore cluster that ``ais://`` and cloud buckets are read from."""

    endpoints: tuple[str, ...] = ()
    """Addresses of proxies, ``http://host:port``, of which one at a time is asked; empty: those in
    ``$AIS_ENDPOINT``, separated by commas."""

    token_file: str = ""
    """File with the token for the proxies, bare or as JSON with a field ``token``; read again when
    the token is refused.  Empty: ``$AIS_AUTHN_TOKEN``, or the file that
    ``$AIS_AUTHN_TOKEN_FILE`` names."""

    ca_file: str = ""
    """Certificates to trust for ``https://``, PEM; empty: ``$AIS_CLIENT_CA``, or the system's."""

    direct: Literal["auto", "off"] = "auto"
    """Whether objects of ``ais://`` buckets are read straight from their targets; a cluster that
    does not permit it is noticed.  ``"off"``: always by way of a proxy."""

    reader: Literal["auto", "lean", "aiohttp"] = "auto"
    """What reads objects.  ``"auto"``: connections of our own where objects come straight from
    targets over plain HTTP, and aiohttp for the rest.  ``"aiohttp"``: nothing else.  ``"lean"``: as
    ``"auto"``, but a target that cannot be read that way is an error."""

    deadline_s: float = 300.0
    """How long a read or a page of a listing is tried again before it has failed, seconds.  Below
    the timeout of the trainers' collectives."""

    stall_s: float = 20.0
    """How long a target may send nothing before the read is tried again, seconds.  Not for objects
    of a provider: while the store fetches one it says nothing, and only `deadline_s` ends that."""

    def __post_init__(self) -> None:
        if "" in self.endpoints:
            raise SettingsValueError("endpoints", "'' is no address of a proxy")
        if self.reader == "lean" and self.direct == "off":
            raise SettingsValueError(
                "reader",
                "'lean' reads straight from targets, which direct = 'off' forbids: choose one",
            )
        _check_range("deadline_s", self.deadline_s, 0.1, 86_400)
        _check_range("stall_s", self.stall_s, 0.1, 3600)


class TrustSettings(_Table, frozen=True, kw_only=True):
    """``[trust]``: who may ask for what."""

    allow_sources: tuple[str, ...] = ()
    """Folders and buckets (``"ais://bucket/prefix"``) below which clients may open streams of their
    own; ``"*"`` allows all.  Streams of the configuration are always allowed."""

    allow_uids: tuple[int, ...] | None = None
    """User ids that may connect; by default whoever the mode of the socket lets in."""

    def __post_init__(self) -> None:
        for source in self.allow_sources:
            if not source:
                raise SettingsValueError(
                    "allow_sources",
                    "'' is no folder: give a folder or the URI of a bucket, or '*' to allow all",
                )
            try:
                Objects(source)  # "*" is one too: a folder of that name
            except PlanError as error:
                raise SettingsValueError("allow_sources", str(error)) from None
        for uid in self.allow_uids or ():
            _check_range("allow_uids", uid, 0, 2**32 - 2)


class Settings(_Table, frozen=True, kw_only=True):
    """A whole configuration."""

    daemon: DaemonSettings = msgspec.field(default_factory=DaemonSettings)
    fetch: FetchSettings = msgspec.field(default_factory=FetchSettings)
    store: StoreSettings = msgspec.field(default_factory=StoreSettings)
    trust: TrustSettings = msgspec.field(default_factory=TrustSettings)
    streams: dict[str, Stream] = {}
    """``[streams.NAME]``: streams that clients open by name."""

    default_stream: str = ""
    """Name of the stream of clients that name none."""

    def __post_init__(self) -> None:
        if "" in self.streams:
            raise SettingsValueError(
                "streams", "'' is no name of a stream: nobody could ask for it"
            )
        for name, stream in self.streams.items():
            if isinstance(stream.plan, Dictated):
                raise SettingsValueError(
                    f"streams.{name}.plan",
                    "type='Dictated' is what a trainer says of a plan that it executes itself: a "
                    "configuration has a plan of headrace.plans",
                )
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
    # ValueError: no TOML, no UTF-8, or a number that is too long to be read.
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"configuration {path} is not TOML: {error}") from None
    return parse(data, origin=str(path))


def parse(data: dict[str, Any], *, origin: str) -> Settings:
    """Check a configuration that was read from somewhere.

    Raises:
        SettingsError: Naming the origin, the key, its value and what is allowed.
    """
    data = typed(data)
    _check_keys(data, Settings, "", origin)
    streams = data.get("streams", {})
    if isinstance(streams, dict):
        # One by one: within a dictionary msgspec does not say which.
        for name, stream in streams.items():
            _convert(stream, Stream, f"streams.{name}", origin)
    return _convert(data, Settings, "", origin)


def part(data: dict[str, Any], kind: Any, *, origin: str) -> Any:  # noqa: ANN401 - the kind says it
    """Check a part of a configuration that stands alone: a plan, or a source.

    Args:
        data: The table.
        kind: What it becomes: a struct, or a union of some.
        origin: Where it was written.

    Raises:
        PlanError: If it refuses a value itself.
        SettingsError: Naming the origin, the key, its value and what is allowed.
    """
    struct = _struct_of(kind, data)
    if struct is not None:
        _check_keys(data, struct, "", origin)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, PlanError):
            raise error.__cause__ from None
        raise SettingsError(f"{origin}: {_explain(data, kind, '', str(error))}") from None


def _convert(data: object, kind: type[_T], path: str, origin: str) -> _T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{origin}: {_explain(data, kind, path, str(error))}") from None


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
        elif get_origin(types[fields[key]]) is dict and isinstance(value, dict):
            kind = get_args(types[fields[key]])[1]
            for name, item in value.items():
                chosen = _struct_of(kind, item)
                if chosen is not None:
                    _check_keys(item, chosen, f"{where}.{name}", origin)
        else:
            chosen = _struct_of(types[fields[key]], value)
            if chosen is not None:
                _check_keys(value, chosen, where, origin)


def _struct_of(kind: object, value: object) -> type[msgspec.Struct] | None:
    """Return the struct that a value of an annotated field would become, if it is one."""
    for option in get_args(kind) or (kind,):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            tag = option.__struct_config__.tag
            if tag is None:
                return option
            if isinstance(value, dict) and value.get("type") == tag:
                return option
    return None


_AT: Final = re.compile(r" - at `\$\.?(.*)`$")
_KEY: Final = re.compile(r"(\w+): ")
_MISSING: Final = re.compile(r"missing required field `(.*)`")


def _explain(data: Any, kind: object, path: str, message: str) -> str:  # noqa: ANN401 - of TOML
    """Turn msgspec's sentence into one that begins with the path and shows the value."""
    at = _AT.search(message)
    text = message[: at.start()] if at else message
    keys = re.findall(r"\w+", at[1]) if at else []
    key = _KEY.match(text)
    if key is not None:  # a table has checked one of its own values
        keys.append(key[1])
        text = text[key.end() :]
    value = data
    allowed: list[str] = []
    for part in keys:
        allowed = _choices(kind, value, part)
        kind = _kind_at(kind, value, part)
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            value = None
    where = ".".join([*([path] if path else []), *keys])
    shown = "" if value is None or isinstance(value, dict) else f" = {value!r}"
    missing = _MISSING.search(text)
    if missing is not None:
        allowed = _choices(kind, value, missing[1])
        where, shown, text = ".".join([*([where] if where else []), missing[1]]), "", "is missing"
    elif key is not None or isinstance(value, dict):  # it has said why
        allowed = []
    elif allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        text = f"unknown (did you mean {near[0]!r}?)" if near else "unknown"
    if allowed:
        text += f"; allowed: {', '.join(sorted(allowed))}"
    return f"{where}{shown}: {text}" if where else text


def _kind_at(kind: object, value: object, key: str) -> object:
    """Return the annotation of a key of a table that is annotated itself."""
    struct = _struct_of(kind, value)
    return None if struct is None else get_type_hints(struct).get(key)


def _choices(kind: object, value: object, key: str) -> list[str]:
    """Return the words that a key of a table may have, if they are a closed list."""
    options = [option for option in get_args(kind) or (kind,) if isinstance(option, type)]
    structs = [option for option in options if issubclass(option, msgspec.Struct)]
    if key in [struct.__struct_config__.tag_field for struct in structs]:
        # What trainers say of plans that they execute themselves is for the wire alone.
        return [str(kind.__struct_config__.tag) for kind in structs if kind is not Dictated]
    annotation = _kind_at(kind, value, key)
    options_of_key = (annotation, *get_args(annotation))
    words = [get_args(option) for option in options_of_key if get_origin(option) is Literal]
    return [str(word) for word in chain.from_iterable(words)]
