from __future__ import annotations

import braceexpand
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.templates import MAX_NAMES, expand, is_template

_numbers = st.builds(
    lambda number, width: f"{number:0{width}}", st.integers(0, 30), st.integers(1, 4)
)
_ranges = st.builds(
    lambda first, last, step: f"{{{first}..{last}{f'..{step}' if step else ''}}}",
    _numbers,
    _numbers,
    st.integers(0, 4),
)
_texts = st.text("ab/.-é", max_size=3)


@given(parts=st.lists(st.one_of(_ranges, _texts), max_size=4))
def test_a_template_stands_for_what_it_does_in_the_sdk(parts: list[str]) -> None:
    template = "".join(parts)
    assert expand(template, "uri") == list(braceexpand.braceexpand(template))


@pytest.mark.parametrize("text", ["", "a", "{}", "{a,b}", "{a..c}", "{1..}", "{-1..2}", "{1.2}"])
def test_other_braces_are_what_they_are(text: str) -> None:
    assert not is_template(text)
    assert expand(text, "uri") == [text]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("x{0..9..0}", "names='x{0..9..0}' has a range with step 0: it must be 1 at least"),
        ("{{0..1}..5}", "names='{{0..1}..5}' has a range inside of another"),
        ("{1..9999999999999999999}", "has a number of more than 18 digits"),
        (
            f"{{1..1024}}{{0..{MAX_NAMES}}}",
            f"stands for {1024 * (MAX_NAMES + 1)} names, the limit is {MAX_NAMES}",
        ),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, told: str) -> None:
    with pytest.raises(PlanError) as refused:
        expand(template, "names")
    assert told in str(refused.value)
