import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError
from crucible_core.times import format_time, parse_retry_after, parse_time


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


NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("86400", 86_400),
        ("99999999", 86_400),
        ("9" * 400, 86_400),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60),
        ("Tue Nov 14 22:14:20 2023", 60),
        ("Wed, 15 Nov 2023 22:13:20 GMT", 86_400),
        ("Fri, 01 Dec 2023 00:00:00 GMT", 86_400),
        ("Fri Dec  1 00:00:00 2023", 86_400),
        ("Mon, 01 Jan 1990 00:00:00 GMT", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),
        ("Sunday, 06-Nov-73 08:49:37 GMT", 86_400),
        ("Tue, 14 Nov 2023 22:13:60 GMT", 40),
    ],
)
def test_retry_after_is_seconds_or_an_http_date(text: str, seconds: float) -> None:
    assert parse_retry_after(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", " ", "soon", "-1", "+1", "1.5", "1e3", "nan", "inf", "0x10", "٣", "1 s", "1,2", "²"),
        *("2023-11-14T22:14:20Z", "Tue, 14 Nov 2023 22:14:20", "Tue, 14 Nov 2023 22:14:20 +0000"),
        *("Tue, 31 Feb 2023 22:14:20 GMT", "Tue, 14 Nov 2023 25:14:20 GMT", "Tue, 00 Nov 2023 22:14:20 GMT"),
        *("tue, 14 nov 2023 22:14:20 gmt", "Die, 14 Nov 2023 22:14:20 GMT", "Tue, 14 Nov 0000 22:14:20 GMT"),
        *(
            "Tue Nov 14 22:14:20 2023 GMT",
            "Tue, ١٤ Nov 2023 22:14:20 GMT",
            "Tue, 14 Nov 2023 22:14:61 GMT",
            "9 " * 9999,
        ),
    ],
)
def test_retry_after_that_is_neither_is_ignored(text: str | None) -> None:
    assert parse_retry_after(text, NOW) is None
