"""Appends of one event that arrive at the same moment: one request to `events`, and an answer for each client."""

import asyncio
import json
from typing import Any

from crucible_core.errors import FieldError, InvalidError, UnavailableError
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest

from .conftest import KEY, Answers, Served


async def post_together(gateway: Served, *events: dict[str, Any], **headers: str) -> list[tuple[int, Any]]:
    """Status and document of each of many requests, all of which are there before the gateway reads the first."""
    port = int(gateway.url.rpartition(":")[2])
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in events]
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    for (_, writer), event in zip(opened, events, strict=True):
        body = json.dumps(event)
        head = f"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n{lines}Content-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n{body}".encode())
    answers = [await reader.read() for reader, _ in opened]
    for _, writer in opened:
        writer.close()
    return [(int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])) for answer in answers]


def event(n: int, type: str = "Custom.Ping", **more: Any) -> dict[str, Any]:
    return {"type": type, "payload": {"n": n}, **more}


def appended(answers: Answers) -> list[AppendRequest]:
    return [request for _, request, _ in answers.asked]


async def test_events_that_arrive_together_share_a_request(gateway: Served, events: Answers) -> None:
    answers = await post_together(gateway, *(event(n, entity=f"e{n}") for n in range(30)))
    assert [status for status, _ in answers] == [201] * 30
    assert sorted(document["sequence"] for _, document in answers) == [*range(1, 31)]
    assert sum(len(request.events) for request in appended(events)) == 30
    assert len(appended(events)) < 15
    by_sequence = {n: new.entity for n, new in enumerate((e for r in appended(events) for e in r.events), 1)}
    assert [by_sequence[document["sequence"]] for _, document in answers] == [f"e{n}" for n in range(30)]


async def test_an_event_that_the_others_would_wait_for_is_asked_for_alone(gateway: Served, events: Answers) -> None:
    def append(request: AppendRequest) -> AppendReply:
        return AppendReply(
            results=[
                Appended(alone=True)
                if request.apart and new.type == "Custom.Alone"
                else Appended(id="evt_x", sequence=7, type=new.type, correlation_id="cor_x")
                for new in request.events
            ]
        )

    events.replies["append"] = append
    answers = await post_together(gateway, *(event(n, "Custom.Alone" if n == 3 else "Custom.Ping") for n in range(10)))
    assert [document["type"] for _, document in answers] == ["Custom.Ping"] * 3 + ["Custom.Alone"] + ["Custom.Ping"] * 6
    assert all(status == 201 for status, _ in answers)
    assert [new.type for request in appended(events) if not request.apart for new in request.events].count(
        "Custom.Alone"
    ) == 1


async def test_what_names_a_cause_or_a_version_shares_no_request(gateway: Served, events: Answers) -> None:
    special = [{"causation_id": "evt_1"}, {"expected_sequence": 0, "entity": "e"}]
    await post_together(gateway, *(event(n, **special[n % 2]) for n in range(8)))
    assert [len(request.events) for request in appended(events)] == [1] * 8


async def test_each_is_told_its_own_error(gateway: Served, events: Answers) -> None:
    def append(request: AppendRequest) -> AppendReply:
        wrong = InvalidError("n: is wrong", errors=[FieldError("payload.n", "is wrong")]).problem()
        return AppendReply(
            results=[
                Appended(error=wrong)
                if json.loads(bytes(new.payload))["n"] % 2
                else Appended(id="evt_x", sequence=7, type=new.type, correlation_id="cor_x")
                for new in request.events
            ]
        )

    events.replies["append"] = append
    answers = await post_together(gateway, *map(event, range(10)))
    assert [status for status, _ in answers] == [201, 422] * 5
    told = [document["correlation_id"] for status, document in answers if status == 422]
    assert len(set(told)) == 5


async def test_all_of_a_request_that_failed_are_told_so(gateway: Served, events: Answers) -> None:
    events.replies["append"] = UnavailableError("not now", retry_after=1)
    answers = await post_together(gateway, *map(event, range(10)))
    assert [status for status, _ in answers] == [503] * 10
    assert len({document["correlation_id"] for _, document in answers}) == 10


async def test_the_log_answers_each(gateway: Served, log: None) -> None:
    """With what is known, what is wrong, and what needs more than a look among it."""
    await post_together(gateway, event(0, id="evt_known"))
    sent = [event(1), event(2, world_id="nowhere"), event(3, id="evt_known"), {"type": "Memory.Creatd"}, event(4)]
    answers = await post_together(gateway, *sent, *map(event, range(20)))
    assert [status for status, _ in answers] == [201, 422, 200, 422, 201, *[201] * 20]
    assert answers[1][1]["errors"][0]["path"] == "world_id"
    assert answers[2][1]["id"] == "evt_known"
    assert answers[3][1]["errors"][0]["suggestion"] == "Memory.Created"
    made = [document["sequence"] for status, document in answers if status == 201]
    assert sorted(made) == [*range(min(made), min(made) + 22)]


async def test_one_key_makes_one_event(gateway: Served, log: None) -> None:
    answers = await post_together(gateway, *[event(1)] * 10, Idempotency_Key="k")
    assert sorted(status for status, _ in answers) == [*[200] * 9, 201]
    assert len({document["sequence"] for _, document in answers}) == 1
