"""The transition table, looked at as a whole: every crossing of messages is tried."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import pytest

from headrace.protocol.states import TRANSITIONS, State, advance
from tests.support.wire import CLIENT_WORDS, DAEMON_WORDS, path_to

MAX_UNDER_WAY = 4
"""Messages on their way in one direction that the search below looks at."""


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(State)


def test_table_has_exactly_the_words_of_the_messages() -> None:
    words = {word for row in TRANSITIONS.values() for word in row}
    assert words == CLIENT_WORDS | DAEMON_WORDS


def test_every_state_can_be_reached() -> None:
    for state in State:
        path = path_to(state)
        here: State | None = State.NEW
        for word in path:
            assert here is not None
            here = advance(here, word)
        assert here is state


def test_nothing_comes_after_closed() -> None:
    assert TRANSITIONS[State.CLOSED] == {}


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
def test_daemon_can_end_the_connection_in_any_state(state: State) -> None:
    assert advance(state, "error.connection") is State.CLOSED


def test_word_that_is_not_in_the_table_is_not_allowed() -> None:
    assert advance(State.NEW, "open") is None
    assert advance(State.READY, "no such word") is None


@pytest.mark.parametrize("word", ["error.request", "notice", "report", "entries", "samples"])
@pytest.mark.parametrize("state", [State.READY, State.OPENING, State.STREAMING, State.CLOSING])
def test_answers_and_notices_change_no_state(state: State, word: str) -> None:
    assert advance(state, word) is state


# ---- all crossings ---------------------------------------------------------------------------


class Situation(NamedTuple):
    """Where both peers stand and what is under way between them."""

    client: State = State.NEW
    daemon: State = State.NEW
    to_daemon: tuple[str, ...] = ()
    to_client: tuple[str, ...] = ()


class Refused(NamedTuple):
    """A message that a peer was allowed to send and the other one refuses."""

    situation: Situation
    word: str


def one_word_of_each_kind(words: frozenset[str]) -> list[str]:
    """Leave out words that the table treats exactly like another one."""
    kinds = {tuple(advance(state, word) for state in State): word for word in sorted(words)}
    return sorted(kinds.values())


CLIENT_KINDS = one_word_of_each_kind(CLIENT_WORDS)
DAEMON_KINDS = one_word_of_each_kind(DAEMON_WORDS)


def successors(now: Situation) -> list[Situation | Refused]:
    """Return what may happen next: a peer sends a word that it may send, or one arrives."""
    following: list[Situation | Refused] = []
    if len(now.to_daemon) < MAX_UNDER_WAY:
        following += [
            now._replace(client=state, to_daemon=(*now.to_daemon, word))
            for word in CLIENT_KINDS
            if (state := advance(now.client, word))
        ]
    if len(now.to_client) < MAX_UNDER_WAY:
        following += [
            now._replace(daemon=state, to_client=(*now.to_client, word))
            for word in DAEMON_KINDS
            if (state := advance(now.daemon, word))
        ]
    if now.to_daemon:
        word, *rest = now.to_daemon
        arrived = now._replace(to_daemon=tuple(rest))
        if now.daemon is State.CLOSED:
            following.append(arrived)
        elif state := advance(now.daemon, word):
            following.append(arrived._replace(daemon=state))
        else:
            following.append(Refused(now, word))
    if now.to_client:
        word, *rest = now.to_client
        arrived = now._replace(to_client=tuple(rest))
        if state := advance(now.client, word):
            following.append(arrived._replace(client=state))
        else:
            following.append(Refused(now, word))
    return following


@pytest.fixture(scope="module")
def graph() -> dict[Situation, list[Situation | Refused]]:
    """Every situation that two peers can get into, with what may follow."""
    found: dict[Situation, list[Situation | Refused]] = {}
    queue = [Situation()]
    while queue:
        now = queue.pop()
        if now in found:
            continue
        found[now] = successors(now)
        queue += [following for following in found[now] if isinstance(following, Situation)]
    return found


def test_whatever_a_peer_may_send_is_allowed_where_it_arrives(
    graph: dict[Situation, list[Situation | Refused]],
) -> None:
    refused = [
        following
        for nexts in graph.values()
        for following in nexts
        if isinstance(following, Refused)
    ]
    assert refused == []


def test_peers_agree_on_the_state_whenever_nothing_is_under_way(
    graph: dict[Situation, list[Situation | Refused]],
) -> None:
    quiet = [now for now in graph if not now.to_daemon and not now.to_client]
    assert {now.client for now in quiet} == set(State)
    assert [now for now in quiet if now.client is not now.daemon] == []


def test_peers_can_meet_again_in_ready_from_wherever_they_are(
    graph: dict[Situation, list[Situation | Refused]],
) -> None:
    before: dict[Situation, list[Situation]] = defaultdict(list)
    for now, nexts in graph.items():
        for following in nexts:
            if isinstance(following, Situation):
                before[following].append(now)
    can_meet: set[Situation] = set()
    queue = [Situation(State.READY, State.READY)]
    while queue:
        now = queue.pop()
        if now not in can_meet:
            can_meet.add(now)
            queue += before[now]
    alive = {now for now in graph if State.CLOSED not in (now.client, now.daemon)}
    assert alive - can_meet == set()
