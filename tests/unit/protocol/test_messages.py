"""Messages: what they are on the wire, and what a reader forgives."""

from __future__ import annotations

import typing
from typing import Any

import msgpack
import msgspec
import pytest

from headrace.protocol import messages as m
from tests.support.wire import CLIENT_WORDS, DAEMON_WORDS, ONE_OF_EACH, PAYLOAD_WORDS

Example = m.Message | m.Header

CLASSES: list[type[msgspec.Struct]] = [
    *typing.get_args(m.ClientMessage),
    *typing.get_args(m.DaemonMessage),
    *typing.get_args(m.Header),
]
DECODERS: dict[str, msgspec.msgpack.Decoder[Any]] = {
    **dict.fromkeys(CLIENT_WORDS, msgspec.msgpack.Decoder(m.ClientMessage)),
    **dict.fromkeys(DAEMON_WORDS, msgspec.msgpack.Decoder(m.DaemonMessage)),
    **dict.fromkeys(PAYLOAD_WORDS, msgspec.msgpack.Decoder(m.Header)),
}

each_message = pytest.mark.parametrize("word", ONE_OF_EACH)


def on_the_wire(message: Example) -> dict[str, Any]:
    plain: dict[str, Any] = msgpack.unpackb(msgspec.msgpack.encode(message))
    return plain


def read(word: str, plain: dict[Any, Any]) -> Example:
    message: Example = DECODERS[word].decode(msgpack.packb(plain))
    return message


def required(message: Example) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(message) if field.required]


def test_there_is_an_example_of_each_message() -> None:
    assert {type(example) for example in ONE_OF_EACH.values()} == set(CLASSES)


def test_no_two_messages_share_a_type() -> None:
    tags = [str(kind.__struct_config__.tag) for kind in CLASSES]
    assert len(set(tags)) == len(tags)


def test_no_message_goes_both_ways() -> None:
    client, daemon = typing.get_args(m.ClientMessage), typing.get_args(m.DaemonMessage)
    assert set(client) & {*daemon, *typing.get_args(m.Header)} == set()


@each_message
def test_message_survives_the_wire(word: str) -> None:
    message = ONE_OF_EACH[word]
    assert DECODERS[word].decode(msgspec.msgpack.encode(message)) == message


@each_message
def test_message_is_one_map_with_its_type(word: str) -> None:
    assert on_the_wire(ONE_OF_EACH[word])["type"] == word.partition(".")[0]


@each_message
def test_any_msgpack_library_can_write_the_message(word: str) -> None:
    message = ONE_OF_EACH[word]
    assert read(word, on_the_wire(message)) == message


@each_message
def test_order_of_the_keys_does_not_matter(word: str) -> None:
    message = ONE_OF_EACH[word]
    assert read(word, dict(reversed(on_the_wire(message).items()))) == message


@each_message
def test_unknown_keys_are_ignored(word: str) -> None:
    message = ONE_OF_EACH[word]
    plain = {"aaa": {"deep": [None, b"", 1.5]}, **on_the_wire(message), "zzz": list(range(99))}
    assert read(word, plain) == message


@each_message
def test_key_with_its_default_is_left_out_by_us_and_taken_from_others(word: str) -> None:
    message = ONE_OF_EACH[word]
    # Enough to make the message, and nothing more.
    few = {key: value for key, value in on_the_wire(message).items() if key in required(message)}
    few["type"] = word.partition(".")[0]
    bare = read(word, few)
    assert on_the_wire(bare) == few
    every = {
        field.encode_name: msgspec.to_builtins(getattr(bare, field.name), builtin_types=(bytes,))
        for field in msgspec.structs.fields(bare)
    }
    assert read(word, few | every) == bare


@each_message
def test_message_without_a_required_key_is_refused(word: str) -> None:
    message = ONE_OF_EACH[word]
    for key in required(message):
        plain = on_the_wire(message)
        del plain[key]
        with pytest.raises(msgspec.ValidationError, match=key):
            read(word, plain)


@each_message
def test_value_of_another_type_is_refused(word: str) -> None:
    message = ONE_OF_EACH[word]
    for field in msgspec.structs.fields(message):
        with pytest.raises(msgspec.ValidationError, match=field.encode_name):
            read(word, on_the_wire(message) | {field.encode_name: 1.5})


@pytest.mark.parametrize("word", ["hello", "welcome", "batch"])
@pytest.mark.parametrize("kind", ["no such message", "", "Hello", 1, None])
def test_unknown_message_is_refused(word: str, kind: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        read(word, on_the_wire(ONE_OF_EACH[word]) | {"type": kind})


@each_message
def test_message_without_a_type_is_refused(word: str) -> None:
    plain = on_the_wire(ONE_OF_EACH[word])
    del plain["type"]
    with pytest.raises(msgspec.ValidationError, match="type"):
        read(word, plain)


@each_message
def test_message_does_not_change(word: str) -> None:
    message = ONE_OF_EACH[word]
    name = message.__struct_fields__[0] if message.__struct_fields__ else "anything"
    with pytest.raises(AttributeError):
        setattr(message, name, None)


def test_columns_are_binary_and_the_lengths_are_called_len() -> None:
    plain = on_the_wire(ONE_OF_EACH["batch"])
    assert all(isinstance(plain[key], bytes) for key in ("ids", "off", "len", "flags"))
    assert "lengths" not in plain


def test_missing_value_has_a_length_that_no_value_has() -> None:
    assert m.MISSING.to_bytes(8, "little") == b"\xff" * 8


@pytest.mark.parametrize("scope", typing.get_args(m.Scope))
def test_errors_are_known_to_the_table_by_their_scope(scope: m.Scope) -> None:
    assert m.word(m.Error(code="x", message="y", scope=scope)) == f"error.{scope}"


def test_error_of_an_unknown_scope_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="scope"):
        read("error.feed", {"type": "error", "code": "x", "message": "y", "scope": "galaxy"})


def test_error_without_a_scope_ends_the_feed() -> None:
    error = read("error.feed", {"type": "error", "code": "x", "message": "y"})
    assert m.word(error) == "error.feed"


def test_hello_is_as_it_will_always_be() -> None:
    # Another version must be able to read it: this layout is a promise.
    assert msgspec.msgpack.encode(m.Hello(versions=(1, 2), agent="a")) == (
        b"\x83\xa4type\xa5hello\xa8versions\x92\x01\x02\xa5agent\xa1a"
    )
