"""The generated parts of `sdk/PROTOCOL.md`: what the code knows, the document does not repeat.

    python -m tests.support.protocol_doc

rewrites the blocks between ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->`` in place.  A
test fails when the document is out of date.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import struct
import types
import typing
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgpack
import msgspec

from headrace.plans import flags as plan_flags
from headrace.protocol import Connection, Role, State, framing
from headrace.protocol import messages as m
from headrace.protocol.states import TRANSITIONS
from tests.support.wire import CLIENT_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DOCUMENT: Final = Path(__file__).parents[2] / "sdk" / "PROTOCOL.md"

TO_DAEMON: Final = "→"
TO_CLIENT: Final = "←"

_BLOCK: Final = re.compile(
    r"(?P<begin><!-- generated: (?P<name>\w+) -->\n).*?(?P<end><!-- end: (?P=name) -->)", re.DOTALL
)


def main() -> None:
    """Bring the document up to date."""
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text()))


def up_to_date(text: str) -> str:
    """Return the document with its generated blocks made anew."""
    return _BLOCK.sub(
        lambda found: f"{found['begin']}\n{BLOCKS[found['name']]()}\n\n{found['end']}", text
    )


def blocks_of(text: str) -> list[str]:
    """Return the names of the generated blocks in a document."""
    return [found["name"] for found in _BLOCK.finditer(text)]


# ---- limits ----------------------------------------------------------------------------------


def limits() -> str:
    """Return the table of the limits."""
    rows = [
        ("control message", f"{framing.MAX_CONTROL_BYTES:,} bytes", "MAX_CONTROL_BYTES"),
        ("header of a payload frame", f"{framing.MAX_HEADER_BYTES:,} bytes", "MAX_HEADER_BYTES"),
        ("payload", f"{framing.MAX_PAYLOAD_BYTES:,} bytes", "MAX_PAYLOAD_BYTES"),
    ]
    docs = _docs_below(ast.parse(inspect.getsource(framing)).body)
    return _table(
        ("what", "limit", "why"),
        ((what, limit, _prose(docs[name]).partition(": ")[2]) for what, limit, name in rows),
    )


# ---- states ----------------------------------------------------------------------------------


def diagram() -> str:
    """Return the transition table as a mermaid diagram."""
    edges: dict[tuple[State, State, str], list[str]] = defaultdict(list)
    for state, row in TRANSITIONS.items():
        for word, following in row.items():
            edges[state, following, _arrow(word)].append(word)
    lines = ["stateDiagram-v2", f"    [*] --> {State.NEW.value}"]
    lines += [
        f"    {state.value} --> {following.value} : {arrow} {', '.join(words)}"
        for (state, following, arrow), words in edges.items()
    ]
    lines.append(f"    {State.CLOSED.value} --> [*]")
    return "\n".join(["```mermaid", *lines, "```"])


def states() -> str:
    """Return the transition table as a table for people."""

    def words(state: State, arrow: str) -> str:
        listed = [
            f"`{word}`" + (f" ⟶ *{following.value}*" if following is not state else "")
            for word, following in TRANSITIONS[state].items()
            if _arrow(word) == arrow
        ]
        return ", ".join(listed) or "nothing"

    return _table(
        ("state", f"{TO_DAEMON} client to daemon", f"{TO_CLIENT} daemon to client"),
        (
            (f"*{state.value}*", words(state, TO_DAEMON), words(state, TO_CLIENT))
            for state in TRANSITIONS
        ),
    )


def _arrow(word: str) -> str:
    return TO_DAEMON if word in CLIENT_WORDS else TO_CLIENT


# ---- messages --------------------------------------------------------------------------------


class Field(NamedTuple):
    """One key of a message, as the document shows it."""

    key: str
    type: str
    default: str
    doc: str


def fields_of(kind: type[msgspec.Struct]) -> list[Field]:
    """Return the keys of a message beside ``type``."""
    docs = _field_docs()[kind.__name__]
    return [
        Field(
            field.encode_name,
            _type_name(field.type),
            _default(field),
            _prose(docs.get(field.name, "")),
        )
        for field in msgspec.structs.fields(kind)
    ]


def tag_of(kind: type[msgspec.Struct]) -> str:
    """Return the ``type`` of a message."""
    return str(kind.__struct_config__.tag)


def reference(union: types.UnionType) -> str:
    """Return the reference of the messages of a union."""
    return "\n\n".join(_message_section(kind) for kind in typing.get_args(union))


def _message_section(kind: type[msgspec.Struct]) -> str:
    content = _field_table(kind) if fields_of(kind) else "No keys beside `type`."
    section = f"#### `{tag_of(kind)}`\n\n{_summary(kind)}\n\n{content}"
    for field in msgspec.structs.fields(kind):
        for nested in typing.get_args(field.type):
            if isinstance(nested, type) and issubclass(nested, msgspec.Struct):
                name = nested.__name__.lower()
                section += f"\n\nA *{name}*: {_summary(nested)}\n\n{_field_table(nested)}"
    return section


def _summary(kind: type[msgspec.Struct]) -> str:
    assert kind.__doc__ is not None
    return _prose(inspect.cleandoc(kind.__doc__))


def _field_table(kind: type[msgspec.Struct]) -> str:
    return _table(
        ("key", "type", "default", "meaning"),
        ((f"`{f.key}`", f.type, f.default, f.doc) for f in fields_of(kind)),
    )


def _type_name(kind: Any) -> str:  # noqa: ANN401 - an annotation
    plain = {int: "int", str: "str", bytes: "bin", bool: "bool", type(None): "nil"}
    if kind in plain:
        return plain[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"*{kind.__name__.lower()}*"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return "map"
    if origin is tuple:
        assert arguments[1:] == (Ellipsis,)
        return f"array of {_type_name(arguments[0])}"
    if origin is Literal:
        return " or ".join(f'`"{word}"`' for word in arguments)
    assert origin in (typing.Union, types.UnionType), kind
    return " or ".join(map(_type_name, arguments))


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "**required**"
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{json.dumps(field.default_factory())}`"
    if field.default == b"":
        return "empty"
    return "nil" if field.default is None else f"`{json.dumps(field.default)}`"


def _field_docs() -> dict[str, dict[str, str]]:
    """Return what stands under each field of each message, by the names of both."""
    tree = ast.parse(inspect.getsource(m))
    return {
        node.name: _docs_below(node.body) for node in tree.body if isinstance(node, ast.ClassDef)
    }


def _docs_below(body: list[ast.stmt]) -> dict[str, str]:
    return {
        before.target.id: inspect.cleandoc(after.value.value)
        for before, after in pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


def _prose(text: str) -> str:
    """Turn a docstring into what a reader without our code understands."""
    kinds = {
        kind.__name__: tag_of(kind)
        for union in (m.ClientMessage, m.DaemonMessage, m.Header)
        for kind in typing.get_args(union)
    }
    text = text.replace("``", "`")
    text = text.replace("`MISSING`", "2^64 \N{MINUS SIGN} 1").replace("2**", "2^")
    text = text.replace("as in `headrace.plans.engine.Flag`", "as listed below")
    text = re.sub(r"\bNone: ", "nil: ", text)
    text = re.sub(r"`(\w+)`", lambda found: f"`{kinds.get(found[1], found[1])}`", text)
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def flags() -> str:
    """Return the table of the flag bits."""
    (node,) = (
        node
        for node in ast.parse(inspect.getsource(plan_flags)).body
        if isinstance(node, ast.ClassDef) and node.name == "Flag"
    )
    docs = {
        before.targets[0].id: after.value.value
        for before, after in pairwise(node.body)
        if isinstance(before, ast.Assign)
        and isinstance(before.targets[0], ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
    return _table(
        ("bit", "name", "meaning"),
        (
            (f"{flag.value}", str(flag.name).lower(), _prose(docs[str(flag.name)]))
            for flag in plan_flags.Flag
        ),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(head), line(("---",) * len(head)), *map(line, rows)])


# ---- the example conversation ----------------------------------------------------------------

_SAMPLES: Final = (b"hello", b"hi")
_OFFSETS: Final = (0, 64)
_PAYLOAD: Final = _SAMPLES[0].ljust(_OFFSETS[1], b"\0") + _SAMPLES[1]

SCRIPT: Final[tuple[m.Message | m.Header, ...]] = (
    m.Hello(versions=(1,), agent="example/1"),
    m.Welcome(version=1, agent="headrace-daemon/1"),
    m.Open(stream="train", credit=1),
    m.Opened(
        token="5f1c",
        stream={
            "source": {"type": "Objects", "uri": "/data"},
            "plan": {"type": "Sequential", "batch_size": 2},
        },
        manifest="9a0b",
        blocks=("77d2",),
        length=2,
        plan="c41e",
        cursor={"epoch": 0, "step": 0},
        steps=1,
        slot_bytes=128,
        num_slots=2,
    ),
    m.Batch(
        seq=0,
        epoch=0,
        step=0,
        global_step=0,
        stream="train",
        n=2,
        fields=("data",),
        ids=struct.pack("<2Q", 0, 1),
        keys=("a.txt", "b.txt"),
        off=struct.pack("<2Q", *_OFFSETS),
        lengths=struct.pack("<2Q", *map(len, _SAMPLES)),
        flags=bytes(2),
        cursor={"epoch": 1, "step": 0},
    ),
    m.EpochEnd(epoch=0, cursor={"epoch": 1, "step": 0}),
    m.Credit(total=2),
    m.Close(),
    m.End(reason="closed"),
)
"""The conversation of the example; digests and cursor are shorter than real ones."""


def example() -> str:
    """Return the example conversation, byte by byte."""
    peers = {TO_DAEMON: Connection(Role.CLIENT), TO_CLIENT: Connection(Role.DAEMON)}
    lines: list[str] = []
    for message in SCRIPT:
        arrow = _arrow(m.word(message))
        sender = peers.pop(arrow)
        if isinstance(message, m.Header):
            sender.send_payload(message, _PAYLOAD)
        else:
            sender.send(message)
        frame = b"".join(sender.data_to_send())
        (receiver,) = peers.values()
        receiver.receive_data(frame)
        peers[arrow] = sender
        lines += ["", f"{arrow} {m.word(message)}", *_frame_lines(frame)]
    return "\n".join(["```text", *lines[1:], "```"])


def _frame_lines(frame: bytes) -> Iterator[str]:
    frame_bytes, header_bytes = struct.unpack(">II", frame[:8])
    if not header_bytes:
        yield from _lines(frame[:8], f"{frame_bytes} bytes follow; 0: a control message")
        yield from _map_lines(frame[8:])
        return
    yield from _lines(frame[:8], f"{frame_bytes} bytes follow, {header_bytes} of them a header")
    yield from _lines(frame[8:9], "an array of 2")
    header_end = 9 + header_bytes
    yield from _map_lines(frame[9:header_end])
    payload_at = header_end + 5
    yield from _lines(frame[header_end:payload_at], f"bin 32 of {len(_PAYLOAD)} bytes")
    end = 0
    for number, (offset, sample) in enumerate(zip(_OFFSETS, _SAMPLES, strict=True)):
        if end < offset:
            yield from _lines(frame[payload_at + end : payload_at + offset], "unspecified")
        end = offset + len(sample)
        note = f"the value of sample {number}: {json.dumps(sample.decode())}"
        yield from _lines(frame[payload_at + offset : payload_at + end], note)


def _map_lines(packed: bytes) -> Iterator[str]:
    """Show a msgpack map key by key."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(packed)
    num_keys = unpacker.read_map_header()
    edge = unpacker.tell()
    yield from _lines(packed[:edge], f"a map of {num_keys}")
    for _ in range(num_keys):
        begin = edge
        key, value = unpacker.unpack(), unpacker.unpack()
        edge = unpacker.tell()
        yield from _lines(packed[begin:edge], f"{key}: {_shown(value)}")


def _lines(data: bytes, note: str) -> Iterator[str]:
    for begin in range(0, len(data), 16):
        yield f"  {data[begin : begin + 16].hex(' '):<47}  # {note}".rstrip(" #")
        note = ""


def _shown(value: object) -> str:
    """Return a value as JSON, with binary as hexadecimal."""
    match value:
        case bytes():
            return f"h'{value.hex()}'"
        case dict():
            return f"{{{', '.join(f'{key}: {_shown(item)}' for key, item in value.items())}}}"
        case list():
            return f"[{', '.join(map(_shown, value))}]"
        case _:
            return json.dumps(value)


def read_example(text: str) -> list[tuple[str, str, bytes]]:
    """Return the frames of the example in a document: arrow, word, bytes."""
    (block,) = (found[0] for found in _BLOCK.finditer(text) if found["name"] == "example")
    frames: list[tuple[str, str, bytes]] = []
    for line in block.splitlines():
        if line.startswith((TO_DAEMON, TO_CLIENT)):
            arrow, word = line.split()
            frames.append((arrow, word, b""))
        elif line.startswith("  "):
            arrow, word, data = frames[-1]
            frames[-1] = (arrow, word, data + bytes.fromhex(line.partition("#")[0]))
    return frames


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "limits": limits,
    "diagram": diagram,
    "states": states,
    "client_messages": lambda: reference(m.ClientMessage),
    "daemon_messages": lambda: reference(m.DaemonMessage),
    "headers": lambda: reference(m.Header),
    "flags": flags,
    "example": example,
}
"""What is generated, by the name of its block."""


if __name__ == "__main__":
    main()
