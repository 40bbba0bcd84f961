from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import CursorError, PlanError
from headrace.plans import Cursor, Seek
from headrace.plans.cursor import FORMAT, MAX_SKIPS, PLAN_VERSION

PLAN = "12" * 32
MANIFEST = "ab" * 32

STATE: dict[str, Any] = {
    "format": 1,
    "plan_version": 1,
    "plan": PLAN,
    "manifest": MANIFEST,
    "epoch": 3,
    "step": 5,
    "position": 120,
    "update": 77,
    "sample": 1234,
    "world_size": 8,
    "skips": [],
    "child": None,
}

numbers = st.integers(0, 2**63 - 1)
cursors = st.builds(
    Cursor,
    plan=st.just(PLAN),
    manifest=st.just(MANIFEST),
    epoch=numbers,
    step=numbers,
    position=numbers,
    update=numbers,
    sample=numbers,
    world_size=st.integers(1, 2**31 - 1),
)


def refusal(state: object) -> str:
    with pytest.raises(CursorError) as refused:
        Cursor.from_state(state)
    return str(refused.value)


# --- The state ------------------------------------------------------------------------------------


@given(cursor=cursors)
def test_a_cursor_comes_back_from_json(cursor: Cursor) -> None:
    assert Cursor.from_state(json.loads(json.dumps(cursor.to_state()))) == cursor


@given(cursor=cursors, data=st.data())
def test_the_order_of_the_keys_does_not_matter(cursor: Cursor, data: st.DataObject) -> None:
    items = data.draw(st.permutations(list(cursor.to_state().items())))
    assert Cursor.from_state(dict(items)) == cursor


def test_the_state_has_these_fields_in_this_form() -> None:
    assert json.dumps(Cursor.from_state(STATE).to_state()) == json.dumps(STATE)


def test_the_state_is_a_copy() -> None:
    cursor = Cursor(plan=PLAN, manifest=MANIFEST)
    cursor.to_state()["epoch"] = 9
    assert cursor.epoch == 0


def test_the_state_stays_small() -> None:
    largest = 2**63 - 1
    cursor = Cursor(
        plan=PLAN,
        manifest=MANIFEST,
        epoch=largest,
        step=largest,
        position=largest,
        update=largest,
        sample=largest,
        world_size=2**31 - 1,
    )
    assert len(json.dumps(cursor.to_state())) < 512


def test_a_field_that_this_version_does_not_know_is_ignored() -> None:
    assert Cursor.from_state({**STATE, "note": "later"}) == Cursor.from_state(STATE)


def test_a_cursor_is_a_value() -> None:
    cursor = Cursor(plan=PLAN, manifest=MANIFEST)
    with pytest.raises(AttributeError):
        cursor.epoch = 1  # type: ignore[misc]


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kind"),
    [(None, "NoneType"), ([], "list"), ("{}", "str"), (7, "int"), (b"{}", "bytes")],
)
def test_what_is_no_dict_is_refused_with_its_type(state: object, kind: str) -> None:
    assert refusal(state) == f"a state is a dict as state_dict() returns it, not {kind}"


def test_the_state_of_a_newer_format_asks_for_an_upgrade() -> None:
    text = refusal({**STATE, "format": FORMAT + 1, "epoch": "in another form"})
    assert f"format {FORMAT + 1}" in text
    assert f"reads up to {FORMAT}" in text
    assert "upgrade Headrace" in text


def test_the_state_of_a_newer_plan_version_asks_for_an_upgrade() -> None:
    text = refusal({**STATE, "plan_version": PLAN_VERSION + 1})
    assert text.startswith("the cursor was made by plan version")
    assert f"plan version {PLAN_VERSION + 1}" in text
    assert f"has {PLAN_VERSION}" in text
    assert "upgrade Headrace" in text


@pytest.mark.parametrize("name", ["format", "plan_version"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_version_that_never_was_is_refused(name: str, value: int) -> None:
    text = refusal({**STATE, name: value})
    assert name in text
    assert str(value) in text


@pytest.mark.parametrize("name", ["epoch", "step", "position", "update", "sample"])
@pytest.mark.parametrize("value", [-1, -(2**70), 2**63, 2**70])
def test_a_number_out_of_range_is_refused_with_the_range(name: str, value: int) -> None:
    text = refusal({**STATE, name: value})
    if abs(value) < 2**63:  # msgspec itself refuses what no i64 or u64 holds
        assert f"{name}={value}" in text
        assert f"0..{2**63 - 1}" in text
    assert name in text


@pytest.mark.parametrize("value", [0, -1, 2**31])
def test_a_world_size_out_of_range_is_refused_with_the_range(value: int) -> None:
    text = refusal({**STATE, "world_size": value})
    assert f"world_size={value}" in text
    assert f"1..{2**31 - 1}" in text


@pytest.mark.parametrize("name", sorted(STATE.keys() - {"child"}))
@pytest.mark.parametrize("value", [None, "1x", 1.5, True, {"a": 1}])
def test_a_field_of_a_wrong_type_is_refused_by_its_name(name: str, value: object) -> None:
    if isinstance(STATE[name], str) and isinstance(value, str):
        value = 5
    assert name in refusal({**STATE, name: value})


@pytest.mark.parametrize("name", ["plan", "manifest"])
def test_a_missing_digest_is_refused_by_its_name(name: str) -> None:
    assert name in refusal({key: value for key, value in STATE.items() if key != name})


@pytest.mark.parametrize("state", [{}, {"model": {}, "step": 12}, {1: 2}])
def test_the_state_of_something_else_is_refused(state: object) -> None:
    assert "not a Headrace cursor" in refusal(state)


def test_more_than_can_be_left_out_is_refused() -> None:
    assert Cursor.from_state({**STATE, "skips": list(range(MAX_SKIPS))}).skips[-1] == MAX_SKIPS - 1
    assert "at most 1000" in refusal({**STATE, "skips": list(range(MAX_SKIPS + 1))})
    assert "skips entry=-1" in refusal({**STATE, "skips": [-1]})


@given(
    state=st.dictionaries(
        st.sampled_from([*STATE, "other"]),
        st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    )
)
def test_any_dict_is_a_cursor_or_a_cursor_error(state: dict[str, object]) -> None:
    try:
        cursor = Cursor.from_state({**STATE, **state})
    except CursorError:
        return
    assert Cursor.from_state(cursor.to_state()) == cursor


def test_a_cursor_checks_itself_where_it_is_made() -> None:
    with pytest.raises(CursorError, match="epoch=-1"):
        Cursor(plan=PLAN, manifest=MANIFEST, epoch=-1)
    with pytest.raises(CursorError, match="position=-5"):
        msgspec.structs.replace(Cursor(plan=PLAN, manifest=MANIFEST), position=-5)


def test_a_cursor_error_is_a_plan_error() -> None:
    assert issubclass(CursorError, PlanError)
    assert CursorError.code == "cursor"


# --- Seek -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epoch", "update", "sample"])
@pytest.mark.parametrize("value", [0, 1, 2**63 - 1])
def test_a_seek_takes_one_place(name: str, value: int) -> None:
    assert getattr(Seek(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("given", "told"), [({}, "none"), ({"epoch": 1, "update": 0}, "'epoch': 1, 'update': 0")]
)
def test_a_seek_to_no_place_or_two_is_refused(given: dict[str, int], told: str) -> None:
    with pytest.raises(CursorError, match="exactly one of epoch=, update=, sample=") as refused:
        Seek(**given)
    assert told in str(refused.value)


@pytest.mark.parametrize("name", ["epoch", "update", "sample"])
@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, "3"])
def test_a_seek_out_of_range_is_refused_with_the_range(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(CursorError) as refused:
        Seek(**{name: value})
    assert f"seek {name}={value!r}" in str(refused.value)
    assert f"0..{2**63 - 1}" in str(refused.value)
