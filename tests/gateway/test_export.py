"""The export: pages as lines, its end, and how it fails; and the counts' way through."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import connect

from crucible_client import AsyncCrucible, Notice
from crucible_client.subscription import Subscription
from crucible_core.errors import InvalidError, UnavailableError
from crucible_core.protocol.events import CountReply, CountRequest, QueryReply, QueryRequest
from crucible_core.protocol.worlds import PlaceRequest
from crucible_kit.nats.bus import Bus

from .conftest import HEADERS, KEY, Answers, Served, answering, commit

EXPORT = "/api/v1/events/export"


@pytest.fixture
async def log(bus: Bus, gateway: Served) -> AsyncIterator[Answers]:
    """An events service with pages of two events each; the log ends at 5."""
    for n in range(5):
        await commit(bus, n)
    async with answering(bus, "events", query=QueryRequest, count=CountRequest) as answers:
        answers.replies["query"] = page
        yield answers


def page(request: QueryRequest) -> QueryReply:
    first = int(request.cursor or 0) + 1
    events = [msgspec.Raw(b'{"n":1.50,"sequence":%d}' % n) for n in range(first, min(first + 2, 6))]
    return QueryReply(events=events, next_cursor=str(first + 1) if first + 2 < 6 else None)


async def test_export_is_every_page_and_an_empty_line(http: httpx.AsyncClient, log: Answers) -> None:
    answer = await http.get(EXPORT, params={"type": ["Memory.*", "File.*"], "filter": '{"n": 1}', "source": "user:a"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.headers["content-disposition"] == 'attachment; filename="crucible-events-5.ndjson"'
    *lines, last = answer.text.removesuffix("\n").split("\n")
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2, 3, 4, 5]
    assert '"n":1.50' in lines[0], "bytes pass through"
    assert last == ""
    first, *rest = [request for _, request, _ in log.asked]
    assert (first.type, first.filter, first.source) == (["Memory.*", "File.*"], {"n": 1}, "user:a")
    assert (first.until, first.min_sequence, first.with_retention, first.order) == (5, 5, True, "asc")
    assert [request.cursor for request in rest] == ["2", "4"]
    assert all(request.min_sequence is None for request in rest)


async def test_a_page_without_a_match_shows_that_it_lives(http: httpx.AsyncClient, log: Answers) -> None:
    def sparse(request: QueryRequest) -> QueryReply:
        return page(request) if request.cursor else QueryReply(events=[], next_cursor="4")

    log.replies["query"] = sparse
    answer = await http.get(EXPORT)
    assert answer.text == ' {"n":1.50,"sequence":5}\n\n'
    log.replies["query"] = QueryReply(events=[])
    assert (await http.get(EXPORT)).text == " \n"


async def test_a_refused_export_is_a_problem(http: httpx.AsyncClient, log: Answers) -> None:
    log.replies["query"] = InvalidError("no such type")
    answer = await http.get(EXPORT)
    assert (answer.status_code, answer.json()["detail"]) == (422, "no such type")
    assert (await http.get(EXPORT, params={"limit": 3})).status_code == 422
    assert (await http.get(EXPORT, params={"from_time": "yesterday"})).status_code == 422


async def test_a_failure_on_the_way_breaks_the_connection(http: httpx.AsyncClient, log: Answers) -> None:
    def failing(request: QueryRequest) -> QueryReply:
        if request.cursor:
            raise InvalidError("the cursor is of another version")
        return page(request)

    log.replies["query"] = failing
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(EXPORT)


async def test_an_export_outlives_a_moment_without_events(gateway: Served, log: Answers) -> None:
    failures = 2

    def hiccup(request: QueryRequest) -> QueryReply:
        nonlocal failures
        if request.cursor and failures:
            failures -= 1
            raise UnavailableError("a restart", retry_after=0)
        return page(request)

    log.replies["query"] = hiccup
    async with AsyncCrucible(gateway.url, KEY, environ={}) as crucible:
        found = [json.loads(line)["sequence"] async for line in crucible.events.export()]
    assert found == [1, 2, 3, 4, 5]
    assert not failures


async def test_count_passes_through(http: httpx.AsyncClient, log: Answers) -> None:
    log.replies["count"] = CountReply(count=0, groups=[], complete=True, counted_to=5)
    asked: dict[str, Any] = {"by": "day", "type": "Memory.*", "causation_id": "evt_1", "after": 3}
    answer = await http.get("/api/v1/events/count", params=asked)
    assert answer.json() == {"count": 0, "groups": [], "complete": True, "counted_to": 5}
    request = log.last
    assert (request.by, request.type, request.causation_id, request.after) == ("day", ["Memory.*"], "evt_1", 3)
    refused = await http.get("/api/v1/events/count", params={"by": "colour"})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "by")


async def test_a_subscription_that_breaks_before_its_first_event_misses_none(gateway: Served, bus: Bus) -> None:
    await commit(bus, 1)
    subscription = Subscription(("Custom.Tick",), None, "now", None)
    async with connect(gateway.ws, additional_headers=HEADERS) as socket:
        await socket.send(subscription.message())
        assert subscription.take("", await socket.recv()) is None
    missed = await commit(bus, 2)
    async with connect(gateway.ws, additional_headers=HEADERS) as socket:
        await socket.send(subscription.message())
        found = [subscription.take("", await socket.recv()) for _ in range(2)]
    assert [event and event.sequence for event in found] == [None, missed]


async def test_the_client_subscribes_from_the_past_and_on(gateway: Served, bus: Bus) -> None:
    await commit(bus, 1)
    await commit(bus, 2, world="mars")
    told: list[Notice] = []
    async with (
        answering(bus, "events", place=PlaceRequest) as known,
        AsyncCrucible(gateway.url, KEY, environ={}) as crucible,
    ):
        known.replies["place"] = PlaceRequest()
        events = crucible.events.subscribe(from_="start", world_id="mars", on_notice=told.append)
        async with aclosing(events):
            assert (await anext(events)).metadata.id == "evt_2"
            await commit(bus, 3, world="mars")
            assert (await anext(events)).metadata.id == "evt_3"
    assert {notice.kind for notice in told} <= {"caught_up"}
