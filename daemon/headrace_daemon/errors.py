"""Errors of the daemon, beside those it shares with the SDK (`headrace.errors`).

HeadraceError
├── SettingsError              the configuration cannot be used
├── SocketInUseError           another daemon serves the socket
├── TrustError                 the client may not ask for this
└── SourceError                reading went wrong
    ├── SourceMissingError     the source is not there, or cannot be listed
    │   └── SourceEmptyError       it is there, and has nothing that is read
    ├── SamplesError           the members of its shards do not form samples, or not pairs
    ├── ObjectError            one object cannot be read, while others can
    │   ├── ObjectMissingError     it is not there (any more)
    │   ├── ObjectChangedError     it is not as it was listed
    │   ├── ObjectCorruptError     it arrives with bytes that do not have its checksum
    │   ├── ObjectUnreadableError  the system or the store refuses to read it
    │   └── ShardError             a shard, an archive of samples, cannot be read
    │       ├── ShardCorruptError      it is damaged: also an ObjectCorruptError
    │       └── ShardRefusedError      it is not read on purpose: also an ObjectUnreadableError
    ├── ExtraMissingError      a package that reading this needs is not installed
    ├── StoreAccessError       the store does not let us in, or not at this
    ├── StoreFullError         the store has no room to fetch what is asked for
    ├── StoreUnavailableError  the store did not answer, or was not complete, for too long
    └── StateFolderError       a manifest cannot be written to or read from the state folder
"""

from __future__ import annotations

from typing import Final

from headrace import errors as shared
from headrace.errors import HeadraceError
from headrace.protocol import messages as m

LIST_ANEW: Final = "restore it, or list anew with 'headrace index SOURCE --refresh'"
"""What to do about an object that is not as it was listed."""


class SettingsError(HeadraceError):
    """A key of the configuration is unknown, missing or has a value that is not allowed."""

    code = "settings"


class SocketInUseError(HeadraceError):
    """A daemon already answers at the socket."""

    code = "socket"


class TrustError(HeadraceError):
    """The client is not allowed to read this source."""

    code = "trust"


class SourceError(HeadraceError):
    """A source or one of its objects cannot be read.

    Attributes:
        what: The source or object.
    """

    code = "source"

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class SourceMissingError(SourceError):
    """The source is not there, or cannot be listed."""


class SourceEmptyError(SourceMissingError):
    """The source is there, and has no object that is taken, or no sample in its shards."""

    code = "empty"


class SamplesError(SourceError):
    """The members of the shards of a source do not form samples, or those of two do not match."""


class ObjectError(SourceError):
    """An object of the manifest cannot be read, while others can."""


class ObjectMissingError(ObjectError):
    """An object of the manifest is not there any more."""


class ObjectChangedError(ObjectError):
    """An object has another size, checksum or version than the manifest says."""


class ObjectCorruptError(ObjectError):
    """An object of the manifest arrives with bytes that do not have its checksum."""


class ObjectUnreadableError(ObjectError):
    """The system or the store refuses to read an object of the manifest."""


class ShardError(ObjectError):
    """A shard cannot be read: not an archive, damaged, or with something in it that is refused.

    Attributes:
        what: Name of the shard.
        offset: Where in the archive the trouble is, bytes (of a compressed tar: when inflated).
        member: Name of the member that it is about, as it can be shown; empty if there is none.
    """

    code = "shard"

    def __init__(self, shard: str, message: str, *, offset: int = 0, member: str = "") -> None:
        about = f", member {member!r}" if member else ""
        super().__init__(shard, f"shard {shard}, byte {offset}{about}: {message}")
        self.offset = offset
        self.member = member


class ShardCorruptError(ShardError, ObjectCorruptError):
    """A shard is damaged, ends early, or is no archive."""


class ShardRefusedError(ShardError, ObjectUnreadableError):
    """A shard has something that is not read on purpose: a sparse member, say, or too long a name.

    Nothing may be wrong with the archive.
    """


class ExtraMissingError(SourceError):
    """A package that reading a source needs is not installed here."""


class StoreAccessError(SourceError):
    """The token is missing or refused, or it does not permit what is asked."""


class StoreFullError(SourceError):
    """The store has no room to fetch an object of a provider."""


class StoreUnavailableError(SourceError):
    """The store did not answer, or some of it was missing, up to the deadline."""


class StateFolderError(SourceError):
    """The state folder does not take or give a manifest: the disk is full, say."""


_FAULTS: dict[type[HeadraceError], str] = {
    shared.PlanError: "client",
    shared.TopologyError: "client",
    TrustError: "client",
    StoreAccessError: "source",
    StoreFullError: "source",
    StoreUnavailableError: "source",
    StateFolderError: "daemon",
    ExtraMissingError: "daemon",
    SourceError: "data",
}


_MAX_MESSAGE_CHARS: Final = 2000


def to_message(error: HeadraceError, *, scope: m.Scope, request: int = 0) -> m.Error:
    """Return the message that tells a client about an error."""
    if isinstance(error, shared.FeedError):
        fault, retryable = error.fault, error.retryable
    else:
        faults = (word for kind, word in _FAULTS.items() if isinstance(error, kind))
        fault, retryable = next(faults, "daemon"), False
    text = str(error)
    # It may quote what the client sent, which may be as long as a message.
    if len(text) > _MAX_MESSAGE_CHARS:
        text = f"{text[:_MAX_MESSAGE_CHARS]}…"
    return m.Error(
        code=error.code,
        message=text,
        fault=fault,
        retryable=retryable,
        scope=scope,
        request=request,
    )
