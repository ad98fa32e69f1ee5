"""The request to redact, and what the live streams still know of a redacted event."""

import json

import httpx
from websockets.asyncio.client import connect

from crucible_core.errors import DeniedError, NotFoundError
from crucible_core.protocol.events import AppendRequest, RedactRequest
from crucible_gateway import examples
from crucible_kit.nats.bus import Bus
from tests.tombstones import tell

from .conftest import HEADERS, Answers, Served, answering, commit, until
from .test_streaming import ALL, numbers, said, subscribe

PATH = "/api/v1/events/evt_a/redact"


async def test_redact_says_who_asks_and_why(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(bus, "events", redact=RedactRequest) as events:
        events.replies["redact"] = json.dumps(examples.REDACTED).encode()
        answer = await http.post(PATH, json={"reason": "asked for"}, headers={"X-Correlation-Id": "cor_mine"})
        assert (answer.status_code, answer.json()) == (200, examples.REDACTED)
        asked = events.last
        assert (asked.id, asked.reason, asked.correlation_id) == ("evt_a", "asked for", "cor_mine")
        assert (asked.source.kind, asked.actor) == ("user", "user:admin")
        assert (await http.post(PATH)).status_code == 200
        assert (events.last.reason, events.last.correlation_id) == (None, None)


async def test_what_is_refused_is_told(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(bus, "events", redact=RedactRequest) as events:
        assert (await http.post(PATH, content=b"{")).status_code == 400
        for body, path in (({"reasn": "x"}, "reasn"), ({"reason": "x" * 1001}, "reason"), ({"reason": 1}, "reason")):
            answer = await http.post(PATH, json=body)
            assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, path)
        assert (await http.post(PATH, params={"x": "y"})).status_code == 422
        assert not events.asked
        events.replies["redact"] = NotFoundError("there is no event evt_a")
        assert (await http.post(PATH)).status_code == 404
        events.replies["redact"] = DeniedError("no", hook="gate", reason="no")
        assert (await http.post(PATH)).json()["hook"] == "gate"
    assert (await http.post(PATH, headers={"Authorization": "Bearer nobody"})).status_code == 401


async def test_a_redacted_event_is_read_as_such_and_sent_again_as_such(
    http: httpx.AsyncClient, events: Answers
) -> None:
    answer = await http.post("/api/v1/events", json=examples.REDACTED)
    assert answer.status_code == 201
    sent = events.last.events[0]
    assert (sent.redacted.by, bytes(sent.payload)) == ("user:alice", b"{}")
    short = {"type": "Custom.A", "redacted": examples.REDACTED["redacted"]}
    assert (await http.post("/api/v1/events", json=short)).json()["errors"][0]["path"] == "redacted"


async def test_as_a_cloud_event_it_is_marked_and_not_taken_back(http: httpx.AsyncClient, bus: Bus) -> None:
    kind = "application/cloudevents+json"
    async with answering(bus, "events", get=RedactRequest, append=AppendRequest) as answers:
        answers.replies["get"] = json.dumps(examples.REDACTED).encode()
        found = (await http.get("/api/v1/events/evt_a", headers={"Accept": kind})).json()
        assert (found["crucibleredacted"], found["data"]) == (True, {})
        refused = await http.post("/api/v1/events", json=found, headers={"Content-Type": kind})
        assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "crucibleredacted")


async def test_who_joins_after_a_redaction_does_not_get_the_event(gateway: Served, bus: Bus) -> None:
    async with connect(gateway.ws, additional_headers=HEADERS) as early:
        await subscribe(early, filters=ALL)
        for n in (1, 2, 3):
            await commit(bus, n)
        assert await numbers(early, 3) == [1, 2, 3]
        await tell(bus, 2)
        assert await numbers(early, 1) == [0], "the tombstone is seen"
        hub = gateway.app.state.gateway.hub
        await until(lambda: hub.reached.count == 4)
        for start in (0, 1, 2, 3, "start"):
            async with connect(gateway.ws, additional_headers=HEADERS) as late:
                await subscribe(late, filters=ALL, **{"from": start})
                left = [1, 3, 0] if start in (0, "start") else [0] if start == 3 else [3, 0]
                assert await numbers(late, len(left)) == left
                assert (await said(late))["type"] == "caught_up"
