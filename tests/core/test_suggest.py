"""The nearest known name is the one that difflib finds."""

import difflib

from hypothesis import given
from hypothesis import strategies as st

from crucible_core.suggest import nearest

NAMES = st.text("abcdeé.", max_size=30)


@given(NAMES, st.lists(NAMES, max_size=30))
def test_nothing_near_is_passed_over(name: str, known: list[str]) -> None:
    found = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=1, cutoff=0.6)
    assert nearest(name, known) == (found[0] if found else None)


def test_case_is_ignored_and_the_known_spelling_given() -> None:
    assert nearest("memory.creatd", ["Memory.Created", "File.Created"]) == "Memory.Created"
    assert nearest("x" * 1000, ["x" * 150]) == "x" * 150
    assert nearest("", ["a"]) is None
