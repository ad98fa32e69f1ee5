"""Pages of lists and of checks: bounded, in order, and none is shown twice or left out."""

from typing import Any

import pytest

from crucible_core.errors import InvalidError, NotFoundError
from crucible_core.protocol.parts import Check, ListRequest
from crucible_kit.pages import check_page, list_page

NAMES = [f"n{number:03}" for number in range(250)]


def listed(records: list[str], limit: int, most_bytes: int = 10_000) -> list[list[str]]:
    pages, cursor = [], None
    while True:
        shown, cursor = list_page(
            reversed(records), len_and_name, str, ListRequest(limit=limit, cursor=cursor), most_bytes
        )
        pages.append(shown)
        if cursor is None:
            return pages


def len_and_name(name: str) -> list[Any]:
    return [len(name), name]


def test_pages_hold_each_record_once_in_order() -> None:
    assert listed(NAMES, 100) == [NAMES[:100], NAMES[100:200], NAMES[200:]]
    assert listed(NAMES, 250) == [NAMES]
    assert listed([], 10) == [[]]


def test_a_page_has_no_more_bytes_than_an_answer_but_one_record() -> None:
    assert [len(shown) for shown in listed(NAMES[:10], 100, most_bytes=25)] == [4, 4, 2]
    assert listed(["x" * 50, "y" * 50], 100, most_bytes=10) == [["x" * 50], ["y" * 50]]


def test_a_record_that_is_gone_ends_no_list() -> None:
    shown, cursor = list_page(NAMES, str, str, ListRequest(limit=10), 10_000)
    rest = [name for name in NAMES if name not in shown]
    assert list_page(rest, str, str, ListRequest(limit=1, cursor=cursor), 10_000)[0] == ["n010"]


@pytest.mark.parametrize("cursor", ["", "!", "ä", "bnVsbA", "WzEsICJ4Il0", "x" * 5000])
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidError) as refused:
        list_page(NAMES, str, str, ListRequest(limit=10, cursor=cursor), 10_000)
    assert refused.value.errors[0].path == "cursor"


@pytest.mark.parametrize("limit", [0, 1001, -1])
def test_a_limit_is_refused(limit: int) -> None:
    with pytest.raises(InvalidError) as refused:
        list_page(NAMES, str, str, ListRequest(limit=limit), 10_000)
    assert refused.value.errors[0].path == "limit"


async def test_checks_come_in_pages_and_one_that_fails_is_told_among_them() -> None:
    async def check(name: str) -> Check:
        if name == "n007":
            raise NotFoundError("it was deleted")
        return Check(name=name, verdict="live")

    found = await check_page(NAMES, str, str, check, ListRequest(limit=100))
    assert [one.id for one in found.checks] == NAMES[:100]
    assert [(one.id, one.check.reason) for one in found.checks if one.check.reason] == [("n007", "it was deleted")]
    rest = await check_page(NAMES, str, str, check, ListRequest(cursor=found.next_cursor))
    assert ([one.id for one in rest.checks], rest.next_cursor) == (NAMES[100:], None)
