"""`sdk/PROTOCOL.md` says what the code does."""

from __future__ import annotations

import re
import typing
from collections import defaultdict
from pathlib import Path

import pytest

import headrace_daemon
from headrace import errors
from headrace.protocol import Connection, Payload, Role, State
from headrace.protocol import messages as m
from headrace.protocol.credit import MAX_CREDIT
from headrace.protocol.states import TRANSITIONS
from headrace_daemon import errors as daemon_errors
from tests.support import protocol_doc
from tests.support.wire import CLIENT_WORDS, read_frames, sent_by

TEXT = protocol_doc.DOCUMENT.read_text()
KINDS = [
    kind
    for union in (m.ClientMessage, m.DaemonMessage, m.Header)
    for kind in typing.get_args(union)
]
EXAMPLE = protocol_doc.read_example(TEXT)

OUR_OWN_CODES = {"settings", "socket", "unavailable"}
"""Codes of errors that never travel: they arise where nobody is connected."""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def section(heading: str) -> str:
    """Return what stands between a heading and the next one."""
    (found,) = re.findall(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", TEXT, re.DOTALL | re.MULTILINE
    )
    return str(found)


def test_document_is_up_to_date() -> None:
    # If this fails: python -m tests.support.protocol_doc, and read the diff as a wire change.
    assert protocol_doc.up_to_date(TEXT) == TEXT


def test_document_has_each_generated_block_once() -> None:
    assert sorted(protocol_doc.blocks_of(TEXT)) == sorted(protocol_doc.BLOCKS)


@pytest.mark.parametrize("kind", KINDS, ids=protocol_doc.tag_of)
def test_document_has_every_message_with_every_key(kind: type[m.Message | m.Header]) -> None:
    # What a value is made of has a table of its own behind it.
    own, *_ = section(f"`{protocol_doc.tag_of(kind)}`").split("\n\nA *")
    rows = {cells(line)[0]: cells(line)[1:] for line in own.splitlines() if line.startswith("| `")}
    assert set(rows) == {f"`{name}`" for name in kind.__struct_encode_fields__}
    assert [row for row in rows.values() if not all(row)] == []


def test_diagram_is_the_transition_table() -> None:
    table: dict[State, dict[str, State]] = defaultdict(dict)
    for line in protocol_doc.diagram().splitlines():
        found = re.fullmatch(r" +(\w+) --> (\w+) : (.) (.*)", line)
        if found:
            state, following, arrow, words = found.groups()
            for word in words.split(", "):
                assert word not in table[State(state)]
                table[State(state)][word] = State(following)
                assert (arrow == protocol_doc.TO_DAEMON) == (word in CLIENT_WORDS)
    assert {state: row for state, row in TRANSITIONS.items() if row} == table
    assert protocol_doc.diagram() in TEXT


def test_table_of_states_is_the_transition_table() -> None:
    lines = [line for line in protocol_doc.states().splitlines() if line.startswith("| *")]
    assert len(lines) == len(TRANSITIONS)
    for line in lines:
        name, *columns = cells(line)
        row = {
            word: State(following) if following else State(name.strip("*"))
            for column in columns
            for word, following in re.findall(r"`([\w.]+)`(?: ⟶ \*(\w+)\*)?", column)
        }
        assert row == TRANSITIONS[State(name.strip("*"))]


def test_document_has_every_code_that_an_error_may_carry() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", section("Errors"), re.MULTILINE))
    documented -= set(typing.get_args(m.Scope)) - {"feed"}  # the table of the scopes
    of_classes = {
        value.code
        for module in (errors, daemon_errors)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, errors.HeadraceError)
    }
    assert headrace_daemon.__file__ is not None
    in_calls = {
        code
        for path in Path(headrace_daemon.__file__).parent.rglob("*.py")
        for code in re.findall(r'\bcode="(\w+)"', path.read_text())
    }
    assert (of_classes | in_calls) - OUR_OWN_CODES - documented == set()


def test_document_has_the_limit_of_credit() -> None:
    assert f"{MAX_CREDIT:,}" in section("Credit")


# ---- the example -----------------------------------------------------------------------------


def test_example_shows_a_whole_conversation() -> None:
    assert [word for _, word, _ in EXAMPLE] == [
        "hello",
        "welcome",
        "open",
        "opened",
        "batch",
        "epoch_end",
        "credit",
        "close",
        "end",
    ]


def test_example_can_be_replayed_byte_by_byte() -> None:
    client, daemon = Connection(Role.CLIENT), Connection(Role.DAEMON)
    for arrow, word, data in EXAMPLE:
        is_from_client = arrow == protocol_doc.TO_DAEMON
        sender, receiver = (client, daemon) if is_from_client else (daemon, client)
        events = [event for byte in data for event in receiver.receive_data(bytes((byte,)))]
        assert receiver.failure is None
        (event,) = events
        # The sender's side of the same message makes the same bytes.
        if isinstance(event, Payload):
            assert m.word(event.header) == word
            sender.send_payload(event.header, event.payload)
        else:
            assert m.word(event) == word
            sender.send(event)
        assert sent_by(sender) == data
        assert client.state is daemon.state
    assert client.state is State.READY
    assert client.credit.available == daemon.credit.available == 1


def test_example_can_be_read_by_any_msgpack_library() -> None:
    for _, word, data in EXAMPLE:
        (message,) = read_frames(data)
        if word == "batch":
            header, payload = message
            values = [payload[:5], payload[64:66]]
            assert (header["type"], values) == ("batch", [b"hello", b"hi"])
        else:
            assert message["type"] == word
