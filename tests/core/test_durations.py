"""How long something is kept, read and written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError
from crucible_core.limits import RETENTION_S
from crucible_core.times import format_keep, parse_keep


@given(st.integers(1, RETENTION_S))
def test_what_is_written_is_read_again(seconds: int) -> None:
    assert parse_keep(format_keep(seconds), "keep") == seconds


@given(st.text(max_size=30).filter(lambda text: not text[:1].isdigit() and text != "forever"))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidError) as error:
        parse_keep(text, "keep")
    assert error.value.errors[0].path == "keep"


def test_the_longest() -> None:
    assert parse_keep("36500d", "keep") == RETENTION_S
    with pytest.raises(InvalidError):
        parse_keep("36501d", "keep")
