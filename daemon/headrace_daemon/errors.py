"""Errors of the daemon, beside those it shares with the SDK (`headrace.errors`).

HeadraceError
├── SettingsError              the configuration cannot be used
├── SocketInUseError           another daemon serves the socket
├── TrustError                 the client may not ask for this
└── SourceError                reading went wrong
    ├── SourceMissingError     the source is not there, is empty, or cannot be listed
    ├── ObjectError            one object cannot be read, while others can
    │   ├── ObjectMissingError     it is not there (any more)
    │   ├── ObjectChangedError     it is not as it was listed
    │   ├── ObjectCorruptError     it arrives with bytes that do not have its checksum
    │   └── ObjectUnreadableError  the system or the store refuses to read it
    ├── StoreAccessError       the store does not let us in, or not at this
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
    """The source is not there, has no samples, or cannot be listed."""


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


class StoreAccessError(SourceError):
    """The token is missing or refused, or it does not permit what is asked."""


class StoreUnavailableError(SourceError):
    """The store did not answer, or some of it was missing, up to the deadline."""


class StateFolderError(SourceError):
    """The state folder does not take or give a manifest: the disk is full, say."""


_FAULTS: dict[type[HeadraceError], str] = {
    shared.PlanError: "client",
    shared.TopologyError: "client",
    TrustError: "client",
    StoreAccessError: "source",
    StoreUnavailableError: "source",
    StateFolderError: "daemon",
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
