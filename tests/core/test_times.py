import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError
from crucible_core.times import format_time, parse_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01.5z", 1_500_000),
        ("1970-01-01 01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("1969-12-31T23:59:59Z", -1_000_000),
    ],
)
def test_rfc3339_is_read(text: str, expected: int) -> None:
    assert parse_time(text, "t") == expected


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("2026-11-21", "2026-11-21T00:00:00.000000Z"),
        ("2026-11-21T10:00:00", "2026-11-21T10:00:00.000000Z"),
        ("20261121T100000Z", "2026-11-21T10:00:00.000000Z"),
        ("yesterday", None),
        ("2026-13-01T00:00:00Z", None),
        ("2026-11-21T24:00:01Z", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("", None),
    ],
)
def test_other_forms_are_refused_with_what_was_meant(text: str, suggestion: str | None) -> None:
    with pytest.raises(InvalidError) as error:
        parse_time(text, "from_time")
    assert (error.value.errors[0].path, error.value.errors[0].suggestion) == ("from_time", suggestion)


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_every_moment_comes_back(moment: int) -> None:
    assert parse_time(format_time(moment), "t") == moment


@given(st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert isinstance(parse_time(text, "t"), int)
