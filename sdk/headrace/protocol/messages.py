"""The vocabulary of the conversation: one small immutable type per message.

A control message is one msgpack map with its word under ``type``.  Unknown keys are ignored, so
that a peer may learn new ones; unknown words are refused.  Streams and cursors travel as plain
maps: what they mean is not the protocol's business, and a bad plan must not look like a broken
conversation.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

VERSION: Final = 1
"""The protocol version that this package speaks."""

MISSING: Final = 2**64 - 1
"""Length of a value that a sample does not have."""

Scope = Literal["request", "feed", "connection"]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of all messages."""


# ---- client to daemon ------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """The first message of a client; its layout never changes."""

    versions: tuple[int, ...]
    """Protocol versions that the client speaks."""

    agent: str = ""
    """Program and version, for the log."""


class Open(_Message, frozen=True, kw_only=True, tag="open"):
    """Ask for a feed; answered by `Opened` or by an `Error` of scope ``feed``."""

    stream: str | dict[str, Any] = ""
    """Name of a configured stream (empty: the default one), or a stream as a map."""

    rank: int = 0
    """Whose share of each step is wanted, ``0 <= rank < world_size``."""

    world_size: int = 1
    """How many ranks share each step."""

    start: dict[str, Any] | None = None
    """A cursor, or ``{"seek": {"epoch" | "update" | "sample": n}, "skips": […]}`` (`skips` as in a
    cursor, may be left out); None: the very beginning."""

    first: int = 0
    """Steps after `start` at which this part of the stream begins."""

    stride: int = 1
    """Distance in steps between the batches of this part; above 1 the feed is one epoch long."""

    epochs: int | None = None
    """Epochs to deliver, the one of `start` included; None: without end."""

    prefetch: int = 4
    """Batches that the daemon should hold ready beyond the first."""

    credit: int = 0
    """Batches that may be sent at once (a total, see `Credit`)."""

    transport: Literal["inline"] = "inline"
    """How payloads travel."""

    token: str = ""
    """Token of a feed of this process that lost its connection, to be taken up again."""

    group: str = ""
    """What all feeds of a run on this node name: their memory is reserved together; empty: none."""

    ranks: int = 1
    """Ranks of the group on this node."""

    workers: int = 1
    """Feeds of the group for each of its ranks."""


class Credit(_Message, frozen=True, kw_only=True, tag="credit"):
    """Allow more batches: the total granted since the feed was opened, never less than before."""

    total: int
    """Batches granted so far, those of `Open` included."""


class Release(_Message, frozen=True, kw_only=True, tag="release"):
    """Give back the memory of batches that were sent.

    Inline batches need none (their slot is free once its bytes are in the socket); it is
    accepted for any batch that was sent.
    """

    seqs: tuple[int, ...]
    """`seq` of each of these batches."""


class Dictation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch that the client has planned; all but the indices comes back in its `Batch`."""

    epoch: int
    """As in `Batch`."""

    step: int
    """As in `Batch`."""

    global_step: int
    """As in `Batch`."""

    ids: bytes
    """u64[n], little-endian, indices into the manifest."""

    flags: bytes = b""
    """u8[n]; empty for none."""

    stream: str = ""
    """As in `Batch`."""

    role: str = "main"
    """As in `Batch`."""

    meta: dict[str, Any] = {}
    """As in `Batch`."""

    cursor: dict[str, Any]
    """Where the stream stands after this batch."""


class Indices(_Message, frozen=True, kw_only=True, tag="indices"):
    """The next batches of a stream whose plan the client executes (``"type": "Dictated"``)."""

    batches: tuple[Dictation, ...]
    """In the order of delivery."""

    is_last: bool = False
    """Whether the stream ends after them."""


class Close(_Message, frozen=True, kw_only=True, tag="close"):
    """End the feed; answered by `End` unless the feed has ended by itself meanwhile."""


class Status(_Message, frozen=True, kw_only=True, tag="status"):
    """Ask how the daemon is; answered by `Report`."""

    request: int = 0
    """Comes back in the answer; the client's to choose."""


class Lookup(_Message, frozen=True, kw_only=True, tag="lookup"):
    """Ask about a stream without opening it; answered by `Entries`."""

    request: int = 0
    """Comes back in the answer; the client's to choose."""

    stream: str | dict[str, Any] = ""
    """As in `Open`."""

    rank: int = 0
    """As in `Open`."""

    world_size: int = 1
    """As in `Open`."""

    start: dict[str, Any] | None = None
    """Position to resolve, as in `Open`."""

    indices: tuple[int, ...] = ()
    """Samples whose names and sizes are wanted."""

    group: str = ""
    """As in `Open`: the memory of the group is reserved, for feeds that are opened soon."""

    ranks: int = 1
    """As in `Open`."""

    workers: int = 1
    """As in `Open`."""


class Read(_Message, frozen=True, kw_only=True, tag="read"):
    """Ask for single samples; answered by a payload frame with a `Samples` header."""

    request: int = 0
    """Comes back in the answer; the client's to choose."""

    stream: str | dict[str, Any] = ""
    """As in `Open`."""

    indices: tuple[int, ...] = ()
    """Indices into the manifest, in the order in which the samples are wanted."""


# ---- daemon to client ------------------------------------------------------------------------


class Welcome(_Message, frozen=True, kw_only=True, tag="welcome"):
    """The answer to `Hello`: the version that both speak from here on."""

    version: int
    """One of those that `Hello` named."""

    agent: str = ""
    """Program and version, for the log."""


class Opened(_Message, frozen=True, kw_only=True, tag="opened"):
    """The feed is open and its memory is reserved."""

    token: str
    """Secret that lets this process take the feed up again after a lost connection."""

    stream: dict[str, Any]
    """The stream in full, also where it was asked for by name."""

    manifest: str
    """Digest of the manifest."""

    blocks: tuple[str, ...]
    """Digests of 64 blocks of the manifest, to tell where two differ."""

    length: int
    """Samples in the manifest; of shards that are streamed, shards."""

    plan: str
    """Digest of the plan."""

    cursor: dict[str, Any]
    """Where the feed begins, before `first` is added."""

    steps: int
    """Steps of each rank in the epoch of that cursor, whatever its position; -1 where an epoch ends
    with data of which nobody knows how much it is (shards that are streamed)."""

    slot_bytes: int
    """Size of one slot: the largest batch of the epoch; 0 where slots grow with what comes."""

    num_slots: int
    """Slots that the feed aims for, two of them guaranteed."""

    ends: bool = False
    """Whether the stream is one pass that ends at its limits; then `End` follows it."""

    transport: str = "inline"
    """How payloads travel."""


class EpochEnd(_Message, frozen=True, kw_only=True, tag="epoch_end"):
    """All batches of an epoch were sent."""

    epoch: int
    """The epoch that has ended."""

    cursor: dict[str, Any]
    """The start of the next epoch that has a step."""


class End(_Message, frozen=True, kw_only=True, tag="end"):
    """The feed is over and its memory is given back."""

    reason: Literal["closed", "finished"]
    """Whether the client closed it, or all epochs that it asked for were sent."""


class Notice(_Message, frozen=True, kw_only=True, tag="notice"):
    """Something worth knowing while the client waits; also a sign of life."""

    kind: str
    """``"listing"``, ``"indexing"``, ``"waiting"`` or ``"skipped"``; a client shows kinds it does
    not know as they are."""

    text: str
    """One line for people."""

    done: int | None = None
    """How far the work is, in units that `text` names."""

    total: int | None = None
    """Where `done` will end, if that is known."""


class Error(_Message, frozen=True, kw_only=True, tag="error"):
    """A request, the feed, or the connection has failed."""

    code: str
    """Stable word for the cause."""

    message: str
    """One sentence for people: the thing, the value, the limit, the next step."""

    fault: str = "daemon"
    """Whose fault it is: ``client``, ``daemon``, ``data`` or ``source``."""

    retryable: bool = False
    """Whether the same request may succeed later without any change."""

    scope: Scope = "feed"
    """What it ends: one request, the feed, or the connection."""

    request: int = 0
    """The request that failed, for scope ``request``."""


class Report(_Message, frozen=True, kw_only=True, tag="report"):
    """The answer to `Status`: numbers by name, as ``headrace status --json`` prints them."""

    request: int = 0
    """That of the request."""

    report: dict[str, Any]
    """Names and nesting may grow with any release."""


class Entries(_Message, frozen=True, kw_only=True, tag="entries"):
    """The answer to `Lookup`."""

    request: int = 0
    """That of the request."""

    stream: dict[str, Any]
    """As in `Opened`."""

    manifest: str
    """As in `Opened`."""

    blocks: tuple[str, ...]
    """As in `Opened`."""

    length: int
    """As in `Opened`."""

    total_bytes: int
    """Size of all samples together."""

    plan: str
    """As in `Opened`."""

    cursor: dict[str, Any]
    """The position that was asked for, in canonical form."""

    steps: int
    """Steps in the whole epoch of that position; -1 as in `Opened`."""

    remaining: int
    """Steps from that position to the end of its epoch; -1 likewise."""

    ends: bool = False
    """As in `Opened`."""

    names: tuple[str, ...] = ()
    """Names of the samples in `indices`, in that order."""

    sizes: tuple[int, ...] = ()
    """Their sizes in bytes."""


# ---- headers of payload frames ---------------------------------------------------------------


class Batch(_Message, frozen=True, kw_only=True, tag="batch"):
    """The header of a batch.  Columns are little-endian u64, field-major."""

    seq: int
    """0, 1, 2, … within the feed."""

    epoch: int
    """The epoch that the batch belongs to."""

    step: int
    """Index of the step within the epoch."""

    global_step: int
    """Index of the step within the run."""

    stream: str = ""
    """Name of the part of a composition; else that of the stream, empty for one that was given as a
    map."""

    role: str = "main"
    """``"main"``, or ``"extra"`` for what runs between steps of the main plan."""

    n: int
    """Samples, fillers included."""

    fields: tuple[str, ...]
    """Names of the F fields of each sample."""

    ids: bytes
    """u64[n], indices into the manifest; of shards that are streamed, 2**22 times the index of the
    shard, plus the place of the sample in it."""

    keys: tuple[str, ...] | None = None
    """Names of the samples."""

    off: bytes
    """u64[F * n], where each value begins in the payload."""

    lengths: bytes = msgspec.field(name="len")
    """u64[F * n], bytes of each value; `MISSING` where a sample has none."""

    flags: bytes
    """u8[n], bits as in `headrace.plans.engine.Flag`."""

    meta: dict[str, Any] = {}
    """What the plan says of the batch beyond this header."""

    cursor: dict[str, Any]
    """Where the stream stands after this batch."""


class Samples(_Message, frozen=True, kw_only=True, tag="samples"):
    """The header of the answer to `Read`; columns as in `Batch`."""

    request: int = 0
    """That of the request."""

    n: int
    """Samples."""

    fields: tuple[str, ...]
    """Names of the F fields of each sample."""

    keys: tuple[str, ...]
    """Names of the samples."""

    off: bytes
    """As in `Batch`."""

    lengths: bytes = msgspec.field(name="len")
    """As in `Batch`."""


ClientMessage = Hello | Open | Indices | Credit | Release | Close | Status | Lookup | Read
DaemonMessage = Welcome | Opened | EpochEnd | End | Notice | Error | Report | Entries
Header = Batch | Samples
Message = ClientMessage | DaemonMessage


def word(message: Message | Header) -> str:
    """Return the word by which the transition table knows a message."""
    tag = str(message.__struct_config__.tag)
    return f"{tag}.{message.scope}" if isinstance(message, Error) else tag
