"""What POST /api/v1/events makes of what clients send."""

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest

from crucible_core.envelope import Metadata, Source
from crucible_core.errors import ConflictError, DeniedError, FieldError, InvalidError, UnavailableError
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent
from crucible_kit.http.exchange import chain_headers
from crucible_kit.nats.bus import Bus
from tests.cases import each_of

from .conftest import KEY, Answers, Served

PATH = "/api/v1/events"
SHORT: dict[str, Any] = {"type": "Custom.Ping", "payload": {"n": 1}}
CLOUD = {"specversion": "1.0", "id": "7", "source": "https://x.test", "type": "com.x.Custom.Ping", "data": {"n": 1}}


def new(events: Answers) -> NewEvent:
    """The last event that was asked to be appended."""
    found: NewEvent = events.last.events[-1]
    return found


async def test_short_form_is_committed(http: httpx.AsyncClient, events: Answers) -> None:
    answer = await http.post(PATH, content=b'{"type":"Custom.Ping", "payload": {"n" : 1.0},"entity":"e"}')
    assert answer.status_code == 201
    assert answer.json() == {"id": "evt_1", "sequence": 1, "type": "Custom.Ping", "correlation_id": "cor_x"}
    sent = new(events)
    assert bytes(sent.payload) == b'{"n" : 1.0}', "the payload's bytes pass through"
    assert (sent.entity, sent.actor, sent.source and sent.source.kind) == ("e", "user:admin", "user")
    assert sent.correlation_id == answer.headers["X-Correlation-Id"]


async def test_long_form_keeps_its_metadata(http: httpx.AsyncClient, events: Answers) -> None:
    metadata = {
        "id": "evt_mine",
        "timestamp": "2026-11-21T10:00:00Z",
        "version": "1.0.0",
        "source": {"kind": "agent", "id": "a"},
        "actor": "agent:a",
        "correlation_id": "cor_1",
        "causation_id": None,
        "hop": 2,
        "world_id": "w",
        "room_id": "r",
        "entity": "e",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    body = {"type": "Custom", "data": {"event": "Ping", "payload": {}}, "metadata": metadata, "sequence": 9}
    assert (await http.post(PATH, json=body)).status_code == 201
    sent = new(events)
    assert sent.type == "Custom.Ping"
    kept = {name: getattr(sent, name) for name in metadata}
    assert msgspec.to_builtins(kept) == metadata


async def test_idempotency_key_passes_and_repetition_is_200(http: httpx.AsyncClient, events: Answers) -> None:
    first = await http.post(PATH, json=SHORT, headers={"Idempotency-Key": "k1"})
    again = await http.post(PATH, json=SHORT, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json() | {"duplicate": True}
    assert new(events).idempotency_key == "k1"


async def test_correlation_id_of_the_request(http: httpx.AsyncClient, events: Answers) -> None:
    answer = await http.post(PATH, json=SHORT, headers={"X-Correlation-Id": "cor_mine"})
    assert answer.headers["X-Correlation-Id"] == "cor_mine"
    assert new(events).correlation_id == "cor_mine"
    fresh = await http.post(PATH, json=SHORT, headers={"X-Correlation-Id": "no spaces here"})
    assert fresh.headers["X-Correlation-Id"].startswith("cor_")
    assert new(events).correlation_id == fresh.headers["X-Correlation-Id"]


@each_of("id", ["cor_mine", "txn abc/7%", "ä👩‍💻", "100%"])
async def test_who_calls_back_continues_the_chain(http: httpx.AsyncClient, events: Answers, id: str) -> None:
    source = Source("user", "a")
    about = Metadata(id="evt_1", timestamp="", source=source, actor="a", correlation_id=id, hop=3)
    answer = await http.post(PATH, json=SHORT, headers=chain_headers(about))
    assert (answer.status_code, new(events).correlation_id, new(events).hop) == (201, id, 4)
    assert answer.headers["X-Correlation-Id"] == id or answer.headers["X-Correlation-Id"].startswith("cor_")
    await http.post(PATH, json=[SHORT, SHORT | {"correlation_id": "own"}], headers=chain_headers(about))
    assert [(event.correlation_id, event.hop) for event in events.last.events] == [(id, 4), ("own", 4)]
    await http.post(PATH, json=SHORT, headers=chain_headers(about) | {"X-Correlation-Id": "cor_other"})
    assert new(events).correlation_id == "cor_other"
    long = {"type": "Custom", "data": {"event": "Ping"}, "metadata": {"hop": 7}}
    await http.post(PATH, json=long, headers=chain_headers(about))
    assert new(events).hop == 7


async def test_depth_that_is_none_is_refused(http: httpx.AsyncClient, events: Answers) -> None:
    for depth in ("", "x", "-1", "1.5", "9" * 10, "1, 2"):
        answer = await http.post(PATH, json=SHORT, headers={"Crucible-Hop": depth})
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "Crucible-Hop")
    assert (await http.post(PATH, json=SHORT, headers={"Crucible-Hop": "99"})).status_code == 201
    assert new(events).hop == 100  # which `events` refuses


async def test_event_that_names_its_cause_gets_its_chain_from_that(http: httpx.AsyncClient, events: Answers) -> None:
    await http.post(PATH, json=SHORT | {"causation_id": "evt_0"})
    assert (new(events).causation_id, new(events).correlation_id, new(events).hop) == ("evt_0", None, 0)
    await http.post(PATH, json=SHORT | {"causation_id": "evt_0"}, headers={"X-Correlation-Id": "cor_mine"})
    assert new(events).correlation_id == "cor_mine"


async def test_one_trace_from_request_to_append(http: httpx.AsyncClient, events: Answers) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await http.post(PATH, json=SHORT, headers={"traceparent": parent})
    assert (new(events).traceparent or "")[:36] == parent[:36]
    assert events.asked[-1][2].traceparent[:36] == parent[:36]


async def test_denial_names_the_hook(http: httpx.AsyncClient, events: Answers) -> None:
    problem = DeniedError("no empty notes", hook="guard", reason="no empty notes").problem()
    events.replies["append"] = AppendReply(results=[Appended(error=problem)])
    answer = await http.post(PATH, json=SHORT)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["type"].endswith("/denied")
    assert (document["hook"], document["reason"]) == ("guard", "no empty notes")
    assert document["correlation_id"] == answer.headers["X-Correlation-Id"]


async def test_version_conflict_is_409(http: httpx.AsyncClient, events: Answers) -> None:
    events.replies["append"] = ConflictError("another event was first")
    assert (await http.post(PATH, json=SHORT | {"expected_sequence": 3})).status_code == 409
    assert new(events).expected_sequence == 3


LONG = {"type": "Custom", "data": {"event": "Ping", "payload": {}}}

BAD: list[tuple[Any, dict[str, str], int, str, str | None]] = [
    (b"", {}, 400, "", None),
    (b"   \n", {}, 400, "", None),
    (b"{", {}, 400, "", None),
    (b'{"type":"Custom.Ping","payload":{"a":"\xff"}}', {}, 400, "", None),
    (b'{"type":"Custom.Ping","payload":' + b"[" * 80 + b"]" * 80 + b"}", {}, 400, "", None),
    (b"[" * 100_000, {}, 400, "", None),
    (b"nul", {}, 400, "", None),
    (b'"text"', {}, 422, "", None),
    ({"payload": {}}, {}, 422, "type", None),
    (SHORT | {"entitty": "x"}, {}, 422, "entitty", "entity"),
    (SHORT | {"entity": 5}, {}, 422, "entity", None),
    (SHORT | {"expected_sequence": -1}, {}, 422, "expected_sequence", None),
    (SHORT | {"retention": "forevr"}, {}, 422, "retention", "forever"),
    (SHORT | {"metadata": {"actor": "x"}}, {}, 422, "metadata", None),
    (LONG | {"payload": {}}, {}, 422, "payload", None),
    (LONG | {"entity": "x"}, {}, 422, "entity", None),
    (LONG | {"metadata": {"actr": "x"}}, {}, 422, "metadata.actr", "actor"),
    (LONG | {"metadata": {"source": {"kind": "usr", "id": "x"}}}, {}, 422, "metadata.source.kind", "user"),
    (LONG | {"metadata": {"traceparent": "x"}}, {}, 422, "metadata.traceparent", None),
    (SHORT, {"Content-Type": "text/plain"}, 415, "", None),
    (SHORT, {"Content-Type": "application/json; charset=latin-1"}, 415, "", None),
    (SHORT, {"Content-Encoding": "gzip"}, 415, "", None),
    (SHORT, {"Idempotency-Key": "k" * 181}, 422, "Idempotency-Key", None),
    (b'{"type":"Custom.Ping","payload":"' + b"x" * 1024 * 1024 + b'"}', {}, 413, "", None),
    (CLOUD | {"specversion": "0.3"}, {"Content-Type": "application/cloudevents+json"}, 422, "specversion", None),
    (CLOUD | {"id": ""}, {"Content-Type": "application/cloudevents+json"}, 422, "id", None),
    ({"type": "x"}, {"Content-Type": "application/cloudevents+json"}, 422, "specversion", None),
]


async def test_bad_input_is_a_problem(http: httpx.AsyncClient, events: Answers) -> None:
    for body, headers, status, path, suggestion in BAD:
        content = body if isinstance(body, bytes) else json.dumps(body)
        answer = await http.post(PATH, content=content, headers={"Content-Type": "application/json"} | headers)
        document = answer.json()
        assert answer.status_code == document["status"] == status, (content[:80], document)
        assert answer.headers["content-type"] == "application/problem+json"
        assert document["detail"]
        assert document["correlation_id"]
        if path:
            assert document["errors"][0]["path"] == path, document
            assert document["errors"][0].get("suggestion") == suggestion, document
    assert events.asked == []


async def test_unknown_query_parameter_names_the_nearest(http: httpx.AsyncClient, events: Answers) -> None:
    answer = await http.post(PATH, json=SHORT, params={"atomik": "true"})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"path": "atomik", "message": "unknown field", "suggestion": "atomic"}]


# ---- batches ---------------------------------------------------------------------------------------------------------


async def test_array_has_a_result_for_each_event(http: httpx.AsyncClient, events: Answers) -> None:
    answer = await http.post(PATH, json=[SHORT, {"type": "Custom.Ping", "paylod": {}}, 7, SHORT])
    assert answer.status_code == 200
    document = answer.json()
    assert document["committed"] == 2
    good, wrong, none, last = document["results"]
    assert (good["sequence"], last["sequence"]) == (1, 2)
    assert wrong["error"]["errors"][0] == {"path": "paylod", "message": "unknown field", "suggestion": "payload"}
    assert none["error"]["status"] == 422
    assert wrong["error"]["correlation_id"] == answer.headers["X-Correlation-Id"]


async def test_events_of_a_batch_have_causes_of_their_own(http: httpx.AsyncClient, events: Answers) -> None:
    await http.post(PATH, json=[SHORT])
    assert new(events).correlation_id is None


async def test_empty_array_commits_nothing(http: httpx.AsyncClient, events: Answers) -> None:
    assert (await http.post(PATH, json=[])).json() == {"committed": 0, "results": []}


async def test_batch_key_tells_its_events_apart(http: httpx.AsyncClient, events: Answers) -> None:
    first = await http.post(PATH, json=[SHORT, SHORT], headers={"Idempotency-Key": "k"})
    again = await http.post(PATH, json=[SHORT, SHORT], headers={"Idempotency-Key": "k"})
    assert first.json()["committed"] == again.json()["committed"] == 2
    assert [result["sequence"] for result in again.json()["results"]] == [1, 2]
    assert all(result["duplicate"] for result in again.json()["results"])


async def test_batch_key_is_for_events_without_a_name_of_their_own(http: httpx.AsyncClient, events: Answers) -> None:
    """A part of the batch may come again: then their places are others."""
    await http.post(PATH, json=[SHORT, SHORT | {"id": "evt_own"}], headers={"Idempotency-Key": "k"})
    assert [event.idempotency_key for event in events.last.events] == ["k/0", None]
    batch = json.dumps([CLOUD, CLOUD | {"id": "other"}])
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    await http.post(PATH, content=batch, headers=headers)
    own = [event.idempotency_key for event in events.last.events]
    await http.post(PATH, content=batch, headers=headers | {"Idempotency-Key": "k"})
    assert [event.idempotency_key for event in events.last.events] == own


async def test_fingerprint_is_of_what_is_said_not_of_how_it_is_written(
    http: httpx.AsyncClient, events: Answers
) -> None:
    async def sent(body: str, headers: dict[str, str] = {}) -> str | None:  # noqa: B006 - never changed
        key = {"Idempotency-Key": "k", "Content-Type": "application/json"}
        assert (await http.post(PATH, content=body, headers=key | headers)).is_success
        return new(events).fingerprint

    first = await sent('{"type": "Custom.Ping", "payload": {"a": 1, "b": [2, {}]}}')
    assert first is not None
    assert await sent('{"payload":{"b":[2,{}],"a":1}, "type":"Custom.Ping"}', {"X-Correlation-Id": "cor_2"}) == first
    for other in (
        '{"type": "Custom.Pong", "payload": {"a": 1, "b": [2, {}]}}',
        '{"type": "Custom.Ping", "payload": {"a": 1, "b": [{}, 2]}}',
        '{"type": "Custom.Ping", "payload": {"a": 1, "b": [2, {}]}, "entity": "e"}',
        '{"type": "Custom.Ping", "payload": {"a": 1, "b": [2, {}]}, "expected_sequence": 0, "entity": "e"}',
    ):
        assert await sent(other) != first
    await http.post(PATH, json=SHORT)
    assert new(events).fingerprint is None


async def test_chunks_after_an_event_that_must_come_again_are_not_asked(
    http: httpx.AsyncClient, events: Answers
) -> None:
    def append(request: AppendRequest) -> AppendReply:
        results = [Appended(id="evt_x", sequence=1, type="Custom.Ping", correlation_id="cor_x") for _ in request.events]
        results[7] = Appended(error=UnavailableError("not now").problem())
        return AppendReply(results=results)

    events.replies["append"] = append
    body = b"\n".join([json.dumps(SHORT).encode()] * 1200)
    answer = await http.post(PATH, content=body, headers={"Content-Type": "application/x-ndjson"})
    assert (answer.status_code, answer.json()["committed"], len(events.asked)) == (200, 499, 1)
    assert [result.get("error", {}).get("status") for result in answer.json()["results"][499:502]] == [None, 503, 503]


async def test_atomic_is_one_request_or_nothing(http: httpx.AsyncClient, events: Answers) -> None:
    answer = await http.post(PATH, json=[SHORT, SHORT], params={"atomic": "true"})
    assert answer.json()["committed"] == 2
    assert events.last.atomic
    asked = len(events.asked)
    refused = await http.post(PATH, json=[SHORT, {"tipe": "x"}], params={"atomic": "true"})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "1.tipe")
    assert (await http.post(PATH, json=[SHORT] * 1001, params={"atomic": "true"})).status_code == 413
    assert len(events.asked) == asked


async def test_atomic_refusal_by_events_passes(http: httpx.AsyncClient, events: Answers) -> None:
    events.replies["append"] = InvalidError("no", errors=[FieldError("events.1.payload.id", "required")])
    answer = await http.post(PATH, json=[SHORT, SHORT], params={"atomic": "true"})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "1.payload.id")


async def test_ndjson_is_appended_in_chunks(http: httpx.AsyncClient, events: Answers) -> None:
    lines = [json.dumps({"type": "Custom.Ping", "payload": {"n": n}}) for n in range(1203)]
    lines[700] = "{broken"
    lines.insert(3, "   ")
    body = "\r\n".join(lines).encode()

    async def trickle() -> Any:
        for at in range(0, len(body), 7001):
            yield body[at : at + 7001]

    answer = await http.post(PATH, content=trickle(), headers={"Content-Type": "application/x-ndjson"})
    document = answer.json()
    assert (answer.status_code, document["committed"], len(document["results"])) == (200, 1202, 1203)
    assert document["results"][700]["error"]["status"] == 400
    assert [len(request.events) for _, request, _ in events.asked] == [500, 499, 203]


async def test_chunks_are_bounded_in_bytes(http: httpx.AsyncClient, events: Answers) -> None:
    line = json.dumps({"type": "Custom.Ping", "payload": {"x": "x" * 900_000}}).encode()
    too_long = json.dumps({"type": "Custom.Ping", "payload": {"x": "x" * 3_000_000}}).encode()
    answer = await http.post(
        PATH, content=b"\n".join([line] * 6 + [too_long]), headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.json()["committed"] == 6
    assert answer.json()["results"][6]["error"]["status"] == 413
    assert [len(request.events) for _, request, _ in events.asked] == [4, 2]


async def test_empty_ndjson_is_malformed(http: httpx.AsyncClient, events: Answers) -> None:
    answer = await http.post(PATH, content=b"\n\n", headers={"Content-Type": "application/x-ndjson"})
    assert answer.status_code == 400


async def test_batch_of_a_service_that_is_away_is_503(http: httpx.AsyncClient) -> None:
    answer = await http.post(PATH, json=[SHORT])
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(("begin", "length"), [(b"[", 65 * 1024 * 1024), (b"{", 1024 * 1024 + 1)])
async def test_announced_excess_is_refused_at_once(gateway: Served, begin: bytes, length: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\r\n"
    writer.write(head.encode() + begin)
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


# ---- CloudEvents -----------------------------------------------------------------------------------------------------


async def test_structured_cloud_event(http: httpx.AsyncClient, events: Answers) -> None:
    body = CLOUD | {"subject": "s", "time": "2026-11-21T10:00:00Z", "correlationid": "cor_c", "ext": 1}
    headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    assert (await http.post(PATH, content=json.dumps(body), headers=headers)).status_code == 201
    sent = new(events)
    assert (sent.type, sent.entity, sent.timestamp, sent.correlation_id) == (
        "Custom.Ping",
        "s",
        "2026-11-21T10:00:00Z",
        "cor_c",
    )
    assert sent.source is not None
    assert (sent.source.kind, sent.source.id) == ("external", "https://x.test")
    assert sent.id is None
    assert (await http.post(PATH, content=json.dumps(body), headers=headers)).status_code == 200, "the same id again"


async def test_binary_cloud_event(http: httpx.AsyncClient, events: Answers) -> None:
    headers = {
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "evt_mine",
        "ce-source": "/s%20x",
        "ce-type": "Custom.Ping",
    }
    assert (await http.post(PATH, content=b'{"n":1}', headers=headers)).status_code == 201
    sent = new(events)
    assert (sent.id, sent.source and sent.source.id, bytes(sent.payload)) == ("evt_mine", "/s x", b'{"n":1}')


async def test_binary_cloud_event_without_data(http: httpx.AsyncClient, events: Answers) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "Custom.Ping"}
    assert (await http.post(PATH, headers=headers)).status_code == 201
    assert bytes(new(events).payload) == b"{}"


async def test_cloud_event_batch(http: httpx.AsyncClient, events: Answers) -> None:
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    body = [CLOUD, CLOUD | {"id": "8"}, {"specversion": "1.0"}]
    document = (await http.post(PATH, content=json.dumps(body), headers=headers)).json()
    assert document["committed"] == 2
    assert document["results"][2]["error"]["status"] == 422


async def test_away_is_503_with_retry_after(http: httpx.AsyncClient, bus: Bus) -> None:
    answer = await http.post(PATH, json=SHORT)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1


async def test_what_crucible_alone_writes_is_403_for_clients(http: httpx.AsyncClient, log: None) -> None:
    event = {"type": "System.Started", "payload": {"service": "events"}}
    cloud = {"specversion": "1.0", "id": "1", "source": "/x", "type": "Hook.Triggered", "data": {"hook": "h"}}
    structured = {"Content-Type": "application/cloudevents+json"}
    long = {"type": "Hook", "data": {"event": "Failed", "payload": {"hook": "h", "run_id": "run_1"}}}
    for sent in ({"json": event}, {"json": long}, {"json": cloud, "headers": structured}):
        answer = await http.post("/api/v1/events", **sent)
        assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json"), answer.text
    batch = (await http.post("/api/v1/events", json=[event, {"type": "Custom.Ping"}])).json()
    assert [result.get("error", {}).get("status") for result in batch["results"]] == [403, None]
    assert (await http.post("/api/v1/events", json=[event], params={"atomic": True})).status_code == 403
    assert (await http.post("/api/v1/events", json=event, params={"react": False})).status_code == 201
