"""The wall between worlds: who may see one of them is shown nothing of another, by no answer, stream or handler."""

import asyncio
import hashlib
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from websockets.sync.client import connect

from crucible_core.access import Grant, KeyRecord
from crucible_core.subjects import Names
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import open_bus

from .conftest import Stack, until
from .receiver import Endpoint, endpoint

HIDDEN = "zulu"
"""No id has it by chance: u and l are not in their alphabet."""
"""The other world, and in the name of everything that belongs to it."""
SECRET = "q9marker"
"""In the text of everything that belongs to it; nobody asks for it."""
BEA, BEAS_KEY = "agent:bea", "the-key-of-bea"
NDJSON = {"Content-Type": "application/x-ndjson"}
SSE = {"Accept": "text/event-stream"}
ANYTHING = [{"event_type": "*"}]


class Ask(NamedTuple):
    """A request of Bea's, and how it may be answered. Where a form is given, the answer to what does not exist has the
    same status."""

    path: str
    body: Any = None
    expect: tuple[int, ...] = (404,)
    headers: dict[str, str] = {}


class Planted(msgspec.Struct):
    """What there is of the other world, by the names under which Bea might ask for it."""

    webhook: str = ""
    replay: str = ""
    run: str = ""
    delivery: str = ""
    memory: str = ""

    @property
    def words(self) -> list[str]:
        return [HIDDEN, SECRET, *msgspec.structs.astuple(self)]


async def give_key(stack: Stack, key: str, *grants: Grant, disabled: bool = False) -> None:
    """As an operator will: a key record with a principal and what it may do."""
    record = KeyRecord(id="key_bea", name="bea", created_at="", principal=BEA, grants=list(grants), disabled=disabled)
    async with open_bus(stack.nats_url(), Names()) as bus:
        bucket = await open_bucket(bus, "keys")
        await bucket.put(hashlib.sha256(key.encode()).hexdigest(), msgspec.json.encode(record))


def give(stack: Stack, *worlds: str) -> None:
    grants = [Grant(worlds=worlds)] if worlds else []
    asyncio.run(give_key(stack, BEAS_KEY, *grants, disabled=not worlds))


def note(world: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "Custom.Note", "payload": {"text": text}, "world_id": world, **fields}


def script(text: str) -> dict[str, Any]:
    return {"type": "Script", "script": text}


def hook(name: str, timing: str = "Post", type: str = "Custom.Note", text: str = "None", **more: Any) -> dict[str, Any]:
    trigger = {"events": [{"type": type}], "timing": timing}
    return {"name": name, "trigger": trigger, "action": script(text), **more}


def sent(response: httpx.Response, *statuses: int) -> Any:
    assert response.status_code in (statuses or (200, 201, 202)), (response.request.url, response.text)
    return response.json() if response.content else None


def plant(operator: httpx.Client, receiver: Endpoint) -> Planted:
    """Both worlds, with something of every kind in the hidden one, and a chain that goes from one to the other."""
    planted = Planted()
    for world in ("acme", HIDDEN):
        sent(operator.post("/api/v1/worlds", json={"id": world, "description": SECRET if world == HIDDEN else ""}))
    sent(operator.post(f"/api/v1/worlds/{HIDDEN}/rooms", json={"id": f"attic-{HIDDEN}"}))
    sent(operator.post("/api/v1/hooks", json=hook(f"hook-{HIDDEN}", text=f'log("{SECRET}")', world_id=HIDDEN)))
    webhook = {
        "name": f"ring-{HIDDEN}",
        "url": f"{receiver.url}{SECRET}",
        "event_filters": ANYTHING,
        "world_id": HIDDEN,
    }
    planted.webhook = sent(operator.post("/api/v1/webhooks", json=webhook))["id"]
    sent(operator.put("/api/v1/retention", json={"rules": [{"type": "File.*", "keep": "3d", "world_id": HIDDEN}]}))
    chain = {"correlation_id": "cor-chain"}
    events = [
        note(HIDDEN, SECRET, id="evt_origin", **chain),
        note("acme", "for bea", id="evt_acme1", causation_id="evt_origin", **chain),
        note(HIDDEN, SECRET, id=f"evt_{HIDDEN}2", causation_id="evt_acme1", **chain),
        note(HIDDEN, SECRET, id=f"evt_{HIDDEN}3", entity=f"ent-{HIDDEN}", room_id=f"attic-{HIDDEN}"),
        note(HIDDEN, SECRET, id=f"evt_{HIDDEN}4", correlation_id=f"cor-{HIDDEN}"),
        {
            "type": "Memory.Created",
            "payload": {"id": f"mem_{HIDDEN}", "content": f"{SECRET} words"},
            "world_id": HIDDEN,
        },
        {"type": "Memory.Created", "payload": {"id": "mem_acme", "content": "acme words"}, "world_id": "acme"},
    ]
    done = sent(operator.post("/api/v1/events", json=events))
    assert done["committed"] == len(events), done
    planted.memory = sent(operator.post("/api/v1/memory", json={"content": f"{SECRET} words"}))["id"]
    body = {"target": {"webhook": planted.webhook}, "filters": ANYTHING, "world_id": HIDDEN}
    planted.replay = sent(operator.post("/api/v1/events/replay", json=body))["id"]
    runs = f"/api/v1/hooks/hook-{HIDDEN}/runs"
    planted.run = until(lambda: operator.get(runs).json()["runs"], 20)[0]["run_id"]
    attempts = f"/api/v1/webhooks/{planted.webhook}/attempts"
    planted.delivery = until(lambda: operator.get(attempts).json()["attempts"], 20)[0]["delivery_id"]
    found = until(lambda: operator.get("/api/v1/memory/mem_acme").status_code == 200, 20)
    assert found
    assert operator.get(f"/api/v1/memory/mem_{HIDDEN}").status_code == 200
    return planted


def cases(planted: Planted) -> dict[str, list[Ask]]:
    """By operation of the OpenAPI document: how Bea tries to see or change what is hidden from her. She never sees more
    than who asks for what there is not."""
    ours, hidden = f"world_id={HIDDEN}", f"evt_{HIDDEN}3"
    wanted = {"name": "bea-hook", "trigger": {"events": [{"type": "*"}], "timing": "Post"}, "action": script("None")}
    url = "http://127.0.0.1:9/"
    everything = {
        "GET /api/v1/events": [
            Ask("", expect=(200,)),
            Ask("?order=desc&limit=1000", expect=(200,)),
            Ask(f"?{ours}", expect=(422,)),
            Ask(f"?room_id=attic-{HIDDEN}", expect=(422,)),
            Ask(f"?entity=ent-{HIDDEN}", expect=(200,)),
            Ask(f"?correlation_id=cor-{HIDDEN}", expect=(200,)),
            Ask("?causation_id=evt_acme1", expect=(200,)),
            Ask('?filter={"event.metadata.world_id":{"starts_with":"z"}}', expect=(200,)),
            Ask("?limit=1000", expect=(200,), headers={"Accept": "application/cloudevents-batch+json"}),
        ],
        "POST /api/v1/events": [
            Ask("", note(HIDDEN, "x"), (403,)),
            Ask("", note("no-such-world", "x"), (403,)),
            Ask("", note("default", "x"), (403,)),
            Ask("", note("acme", "x", id=hidden), (409,)),
            Ask("", note("acme", "x", causation_id="evt_origin", id="evt_bea0"), (201, 200)),
            Ask(
                "",
                {"type": "Custom", "data": {"event": "X"}, "metadata": {"world_id": "acme", "actor": "user:admin"}},
                (403,),
            ),
            Ask("?atomic=true", [note("acme", "x"), note(HIDDEN, "x")], (403,)),
        ],
        "POST /api/v1/events/batch": [Ask("", [note(HIDDEN, "x"), note("default", "x")], (200,))],
        "GET /api/v1/events/count": [
            Ask("?by=world_id", expect=(200,)),
            Ask("?by=room_id", expect=(200,)),
            Ask("?by=actor", expect=(200,)),
            Ask(f"?{ours}", expect=(422,)),
            Ask(f'?filter={{"text":"{HIDDEN}"}}', expect=(200,)),
        ],
        "GET /api/v1/events/export": [Ask("", expect=(200,)), Ask(f"?{ours}", expect=(422,))],
        "GET /api/v1/events/stream": [Ask(f"?{ours}", expect=(422,), headers=SSE)],
        "GET /api/v1/events/trace/{correlation_id}": [
            Ask(f"cor-{HIDDEN}"),
            Ask("cor-none"),
            Ask("cor-chain", expect=(200,)),
        ],
        "GET /api/v1/events/{id}": [Ask(hidden), Ask("evt_none"), Ask("evt_origin"), Ask("evt_acme1", expect=(200,))],
        "POST /api/v1/events/{id}/redact": [Ask(f"{hidden}/redact"), Ask("evt_none/redact")],
        "GET /api/v1/event-types": [Ask("", expect=(200,))],
        "POST /api/v1/event-types": [Ask("", {"type": "Bea.Made", "schema": {"type": "object"}}, (403,))],
        "GET /api/v1/event-types/{type}": [Ask("Custom.Note", expect=(200,)), Ask("Memory.Created", expect=(200,))],
        "DELETE /api/v1/event-types/{type}": [Ask("Memory.Created", expect=(403,)), Ask("Bea.None", expect=(403,))],
        "POST /api/v1/events/replay": [
            Ask("", {"target": {"webhook": planted.webhook}}),
            Ask("", {"target": {"webhook": f"ring-{HIDDEN}"}}),
            Ask("", {"target": {"hook": f"hook-{HIDDEN}"}}),
            Ask("", {"target": {"hook": "hook-none"}}),
            Ask("", {"target": {"webhook": "whk_none"}, "world_id": HIDDEN}, (422,)),
        ],
        "GET /api/v1/replays": [Ask("", expect=(200,))],
        "GET /api/v1/replays/{id}": [Ask(planted.replay), Ask("rpl_none")],
        "GET /api/v1/hooks": [Ask("", expect=(200,))],
        "POST /api/v1/hooks": [
            Ask("", hook(f"hook-{HIDDEN}"), (409,)),
            Ask("", wanted | {"world_id": HIDDEN}, (422,)),
            Ask("", wanted | {"world_id": "no-such-world"}, (422,)),
            Ask("", wanted | {"action": {"type": "Shell", "command": "true"}}, (422,)),
        ],
        "POST /api/v1/hooks/test": [Ask("", expect=(200,))],
        "GET /api/v1/hooks/{name}": [Ask(f"hook-{HIDDEN}"), Ask("hook-none")],
        "PATCH /api/v1/hooks/{name}": [Ask(f"hook-{HIDDEN}", {"description": "x"}), Ask("hook-none", {})],
        "DELETE /api/v1/hooks/{name}": [Ask(f"hook-{HIDDEN}"), Ask("hook-none")],
        "GET /api/v1/runs/{id}": [Ask(planted.run), Ask("run_", expect=(404, 409)), Ask("run_none")],
        "POST /api/v1/events/{id}/resend": [
            Ask(f"{hidden}/resend", {"webhook": planted.webhook}),
            Ask("evt_acme1/resend", {"webhook": f"ring-{HIDDEN}"}),
            Ask("evt_acme1/resend", {"webhook": "ring-none"}),
        ],
        "GET /api/v1/webhooks": [Ask("", expect=(200,))],
        "POST /api/v1/webhooks": [
            Ask("", {"name": f"ring-{HIDDEN}", "url": url, "event_filters": ANYTHING}, (409,)),
            Ask("", {"name": "bea-w", "url": url, "event_filters": ANYTHING, "world_id": HIDDEN}, (422,)),
        ],
        "POST /api/v1/webhooks/test": [Ask("", expect=(200,))],
        "GET /api/v1/webhooks/{id}": [Ask(planted.webhook), Ask(f"ring-{HIDDEN}"), Ask("ring-none")],
        "PATCH /api/v1/webhooks/{id}": [Ask(planted.webhook, {"name": "x"}), Ask("ring-none", {"name": "x"})],
        "DELETE /api/v1/webhooks/{id}": [Ask(planted.webhook), Ask("ring-none")],
        "POST /api/v1/memory": [Ask("", {"content": "x"}, (403,))],
        "POST /api/v1/memory/query": [
            Ask("", {"text": "words"}, (422,)),
            Ask("", {"text": "words", "world_id": HIDDEN}, (422,)),
            Ask("", {"text": "words", "world_id": "no-such-world"}, (422,)),
            Ask("", {"text": "words", "world_id": "acme"}, (200,)),
            Ask("", {"world_id": "acme"}, (200,)),
        ],
        "GET /api/v1/memory/status": [Ask("", expect=(200,))],
        "GET /api/v1/memory/{id}": [
            Ask(f"mem_{HIDDEN}"),
            Ask(planted.memory),
            Ask("mem_none"),
            Ask("mem_acme", expect=(200,)),
        ],
        "PATCH /api/v1/memory/{id}": [Ask(planted.memory, {"content": "x"}), Ask("mem_none", {"content": "x"})],
        "DELETE /api/v1/memory/{id}": [Ask(planted.memory), Ask("mem_none")],
        "GET /api/v1/worlds": [Ask("", expect=(200,))],
        "POST /api/v1/worlds": [Ask("", {"id": HIDDEN}, (403,)), Ask("", {"id": "no-such-world"}, (403,))],
        "GET /api/v1/worlds/{world}": [Ask(HIDDEN), Ask("default"), Ask("no-such-world"), Ask("acme", expect=(200,))],
        "DELETE /api/v1/worlds/{world}": [
            Ask(HIDDEN),
            Ask(f"{HIDDEN}?purge=true"),
            Ask("none"),
            Ask("acme", expect=(403,)),
        ],
        "GET /api/v1/worlds/{world}/rooms": [
            Ask(f"{HIDDEN}/rooms"),
            Ask("none/rooms"),
            Ask("acme/rooms", expect=(200,)),
        ],
        "POST /api/v1/worlds/{world}/rooms": [Ask(f"{HIDDEN}/rooms", {"id": "x"}), Ask("none/rooms", {"id": "x"})],
        "DELETE /api/v1/worlds/{world}/rooms/{room}": [Ask(f"{HIDDEN}/rooms/attic-{HIDDEN}"), Ask("none/rooms/x")],
        "GET /api/v1/retention": [Ask("", expect=(200,))],
        "PUT /api/v1/retention": [Ask("", {"rules": []}, (403,))],
        "GET /api/v1/losses": [Ask("", expect=(403,))],
        "POST /api/v1/losses/accept": [Ask("", expect=(403,))],
    }
    for action in ("pause", "resume", "cancel"):
        asks = [Ask(f"{planted.replay}/{action}"), Ask(f"rpl_none/{action}")]
        everything[f"POST /api/v1/replays/{{id}}/{action}"] = asks
    for action, body in (("enable", None), ("disable", None), ("test", {"dry_run": True})):
        everything[f"POST /api/v1/hooks/{{name}}/{action}"] = [
            Ask(f"hook-{HIDDEN}/{action}", body),
            Ask(f"none/{action}", body),
        ]
    for action in ("enable", "disable", "rotate-secret", "test"):
        asks = [Ask(f"{planted.webhook}/{action}"), Ask(f"ring-{HIDDEN}/{action}"), Ask(f"whk_none/{action}")]
        everything[f"POST /api/v1/webhooks/{{id}}/{action}"] = asks
    everything["GET /api/v1/hooks/{name}/runs"] = [Ask(f"hook-{HIDDEN}/runs"), Ask("none/runs")]
    everything["GET /api/v1/webhooks/{id}/attempts"] = [Ask(f"{planted.webhook}/attempts"), Ask("whk_none/attempts")]
    for path in ("/", "/docs", "/healthz", "/metrics", "/openapi.json", "/readyz"):
        everything[f"GET {path}"] = [Ask("", expect=(200,))]
    return everything


def operations(http: httpx.Client) -> Iterator[str]:
    for path, operations in http.get("/openapi.json").json()["paths"].items():
        for method in operations:
            yield f"{method.upper()} {path}"


def told(response: httpx.Response, ask: Ask, words: list[str]) -> list[str]:
    """What an answer tells of the hidden world, apart from what it was asked for."""
    answer = f"{response.headers} {response.text}"
    given = {*re.findall(r"[\w-]+", ask.path), *re.findall(r"[\w-]+", json.dumps(ask.body))}
    for word in sorted(given, key=len, reverse=True):
        if any(hidden in word for hidden in words):
            answer = answer.replace(word, "")
    return [word for word in words if word in answer]


def try_all(bea: httpx.Client, planted: Planted) -> None:
    tried = cases(planted)
    assert set(operations(bea)) == set(tried), "a route without a case here, or a case without its route"
    for operation, asks in tried.items():
        method, _, path = operation.partition(" ")
        for ask in asks:
            url = f"{path.partition('{')[0]}{ask.path}"
            body = {} if ask.body is None else {"json": ask.body}
            response = bea.request(method, url, headers=ask.headers, **body)
            assert response.status_code in ask.expect, (operation, ask, response.status_code, response.text[:500])
            assert not told(response, ask, planted.words), (operation, ask, response.text[:2000])
            if response.status_code == 403:
                assert response.json()["required"], response.text


def shown(bea: httpx.Client) -> list[dict[str, Any]]:
    lines = bea.get("/api/v1/events/export").text.splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def check_reads(bea: httpx.Client) -> None:
    """She does see what is hers."""
    events = shown(bea)
    assert {event["metadata"]["world_id"] for event in events} == {"acme"}
    assert {"evt_acme1", "evt_bea0"} <= {event["metadata"]["id"] for event in events}
    assert bea.get("/api/v1/events/count?by=world_id").json()["groups"] == [{"key": "acme", "count": len(events)}]
    asked = bea.get("/api/v1/events?limit=1000").json()["events"]
    assert [event["metadata"]["id"] for event in asked] == [event["metadata"]["id"] for event in events]
    assert [world["id"] for world in bea.get("/api/v1/worlds").json()["worlds"]] == ["acme"]
    assert bea.get("/api/v1/hooks").json()["hooks"] == bea.get("/api/v1/webhooks").json()["webhooks"] == []
    assert bea.get("/api/v1/replays").json()["replays"] == []
    assert bea.get("/api/v1/retention").json()["rules"] == []
    assert bea.get("/api/v1/memory/status").json()["memories"] == 1
    [memory] = bea.post("/api/v1/memory/query", json={"text": "words", "world_id": "acme"}).json()["memories"]
    assert (memory["id"], memory["score"]) == ("mem_acme", 1.0)
    types = {one["type"]: one["count"] for one in bea.get("/api/v1/event-types").json()["types"]}
    assert types["Memory.Created"] == 1
    assert types["System.WorldCreated"] == 0
    event = next(event for event in events if event["metadata"]["id"] == "evt_bea0")
    about = event["metadata"]
    assert (about["actor"], about["hop"], about["correlation_id"] != "cor-chain") == (
        BEA,
        0,
        True,
    )  # as of no known cause


def check_trace(bea: httpx.Client, operator: httpx.Client) -> None:
    """The tree keeps its shape, and says nothing of what is hidden."""
    trace = bea.get("/api/v1/events/trace/cor-chain").json()
    assert shape(trace["roots"]) == shape(operator.get("/api/v1/events/trace/cor-chain").json()["roots"])
    [root] = trace["roots"]
    assert (root["hidden"], root["event"], root["deliveries"]) == (True, None, [])
    seen = [node for node in root["effects"] if "hidden" not in node]
    assert "evt_acme1" in [node["event"]["metadata"]["id"] for node in seen]


def shape(nodes: list[Any]) -> list[Any]:
    return [shape(node["effects"]) for node in nodes]


def check_streams(bea: httpx.Client, stack: Stack, operator: httpx.Client, planted: Planted) -> None:
    """The past, live events and a replay, over both kinds of stream."""
    frames: list[str] = []
    with bea.stream("GET", "/api/v1/events/stream?from=start", headers=SSE) as answer:
        for line in answer.iter_lines():
            frames.append(line)
            if "caught_up" in line:
                break
    key = {"Authorization": f"Bearer {BEAS_KEY}"}
    socket_url = f"ws{stack.url.removeprefix('http')}/api/v1/events/stream"
    with connect(socket_url, additional_headers=key) as socket:

        def say(**message: Any) -> None:
            socket.send(json.dumps(message))

        def hear(last: str) -> None:
            while True:
                frames.append(str(socket.recv(20)))
                if last in frames[-1]:
                    return

        say(action="subscribe", filters=ANYTHING, **{"from": "start"})
        hear("caught_up")
        subscription = next(
            json.loads(frame)["subscription"] for frame in frames if '"subscribed"' in frame and "sub_" in frame
        )
        sent(operator.post("/api/v1/events", json=[note(HIDDEN, SECRET), note("acme", "live", id="evt_live")]))
        hear("evt_live")
        say(action="replay", filters=ANYTHING, **{"from": 0})
        hear('"replayed"')
        # Somebody who may see all replays it to her.
        body = {"target": {"subscription": subscription}, "filters": ANYTHING}
        sent(operator.post("/api/v1/events/replay", json=body))
        hear('"replayed"')
        say(action="subscribe", filters=ANYTHING, world_id="no-such-world")
        hear('"error"')
        asked = frames.pop().replace("no-such-world", "")
        say(action="subscribe", filters=ANYTHING, world_id=HIDDEN)
        hear('"error"')
        refused = frames.pop().replace(HIDDEN, "")
        assert json.loads(asked)["detail"] == json.loads(refused)["detail"]
    assert sum("evt_acme1" in frame for frame in frames) >= 4
    assert not [word for word in planted.words if any(word in frame for frame in frames)]


def check_subscription_of_others(bea: httpx.Client, stack: Stack) -> None:
    """Nobody replays to somebody else's socket."""
    socket_url = f"ws{stack.url.removeprefix('http')}/api/v1/events/stream"
    with connect(socket_url, additional_headers={"Authorization": f"Bearer {stack.key}"}) as socket:
        socket.send(json.dumps({"action": "subscribe", "filters": ANYTHING}))
        subscription = json.loads(socket.recv(20))["subscription"]
        sent(bea.post("/api/v1/events/replay", json={"target": {"subscription": subscription}}), 404)


def check_handlers(bea: httpx.Client, operator: httpx.Client, receiver: Endpoint, planted: Planted) -> None:
    """A hook and a webhook of hers are given what she may see, whoever brings it about, and act with her rights."""
    wanted = {"name": "bea-ring", "url": f"{receiver.url}bea", "event_filters": ANYTHING}
    webhook = sent(bea.post("/api/v1/webhooks", json=wanted))
    assert (webhook["owner"], webhook["state"]) == (BEA, "active")
    text = """
        log(memory_query(text="words"))
        try:
            memory_get("mem_" + "ze" + "ta")
        except LookupError:
            log("none")
    """
    made = sent(bea.post("/api/v1/hooks", json=hook("bea-post", text=textwrap.dedent(text))))
    assert made["owner"] == BEA
    guard = hook("bea-guard", "Pre", "Custom.Judged", '{"deny": "bea says no"}')
    sent(bea.post("/api/v1/hooks", json=guard))
    for world, status in (("acme", 422), (HIDDEN, 201), ("default", 201)):
        judged = {"type": "Custom.Judged", "payload": {"text": SECRET if world == HIDDEN else ""}, "world_id": world}
        sent(operator.post("/api/v1/events", json=judged), status)
    both = [note(HIDDEN, SECRET, id=f"evt_{HIDDEN}9"), note("default", SECRET), note("acme", "ring", id="evt_ring")]
    sent(operator.post("/api/v1/events", json=both))
    until(lambda: "evt_ring" in receiver.event_ids(), 20)
    for target in ({"webhook": webhook["id"]}, {"hook": "bea-post"}):  # of all that there is
        replay = sent(operator.post("/api/v1/events/replay", json={"target": target}))["id"]
        until(lambda id=replay: operator.get(f"/api/v1/replays/{id}").json()["state"] == "done", 20)
    sent(operator.post(f"/api/v1/events/evt_{HIDDEN}3/resend", json={"webhook": webhook["id"]}), 422)
    sent(bea.post("/api/v1/events/evt_acme1/resend", json={"webhook": "bea-ring"}))
    until(lambda: "evt_acme1" in receiver.event_ids(), 20)
    runs = until(lambda: [one for one in bea.get("/api/v1/hooks/bea-post/runs").json()["runs"] if one["log"]], 20)
    assert {run["outcome"] for run in operator.get("/api/v1/hooks/bea-post/runs?limit=1000").json()["runs"]} == {"ok"}
    assert all("mem_acme" in str(run["log"]) and "none" in run["log"] for run in runs)
    assert sent(bea.get(f"/api/v1/runs/{runs[0]['run_id']}"))["runs"]
    assert sent(bea.get("/api/v1/webhooks/bea-ring/attempts"))["attempts"]
    assert {run["world_id"] for run in operator.get("/api/v1/hooks/bea-post/runs?limit=1000").json()["runs"]} == {
        "acme"
    }
    verdicts = [
        bea.post(f"/api/v1/hooks/{name}/test", json={"dry_run": True}).json() for name in ("bea-post", "bea-guard")
    ]
    assert [verdict["verdict"] for verdict in verdicts] == ["live", "live"], verdicts


def bodies_of_bea(receiver: Endpoint) -> list[str]:
    return [body.decode() for headers, body in receiver.requests if headers[":path"].endswith("/bea")]


def check_unchanged(operator: httpx.Client, planted: Planted) -> None:
    assert operator.get(f"/api/v1/hooks/hook-{HIDDEN}").json()["state"] == "active"
    assert operator.get(f"/api/v1/webhooks/{planted.webhook}").json()["name"] == f"ring-{HIDDEN}"
    assert operator.get(f"/api/v1/events/evt_{HIDDEN}3").json()["data"]["payload"] == {"text": SECRET}
    rooms = operator.get(f"/api/v1/worlds/{HIDDEN}/rooms").json()["rooms"]
    assert [room["id"] for room in rooms] == ["main", f"attic-{HIDDEN}"]
    assert operator.get(f"/api/v1/memory/{planted.memory}").json()["content"] == f"{SECRET} words"
    assert operator.get("/api/v1/retention").json()["rules"]


@pytest.fixture
def bea(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {BEAS_KEY}"}, timeout=20) as client:
        yield client


def test_who_may_see_one_world_is_shown_nothing_of_another(stack: Stack, bea: httpx.Client) -> None:
    with endpoint() as receiver, stack.http() as operator:
        planted = plant(operator, receiver)
        give(stack, "acme")
        until(lambda: bea.get("/api/v1/worlds").status_code == 200, 10)
        try_all(bea, planted)
        check_reads(bea)
        check_trace(bea, operator)
        check_streams(bea, stack, operator, planted)
        check_subscription_of_others(bea, stack)
        check_handlers(bea, operator, receiver, planted)
        assert not [word for word in planted.words for body in bodies_of_bea(receiver) if word in body]
        try_all(bea, planted)
        check_unchanged(operator, planted)


def test_an_open_stream_shows_what_may_be_seen_now(stack: Stack, bea: httpx.Client) -> None:
    with stack.http() as operator:
        sent(operator.post("/api/v1/worlds", json={"id": "acme"}))
        give(stack, "acme", "default")
        until(lambda: bea.get("/api/v1/worlds").status_code == 200, 10)
        url = f"ws{stack.url.removeprefix('http')}/api/v1/events/stream"
        keys = [{"Authorization": f"Bearer {key}"} for key in (BEAS_KEY, stack.key)]
        with connect(url, additional_headers=keys[0]) as socket, connect(url, additional_headers=keys[1]) as other:
            for each in (socket, other):
                each.send(json.dumps({"action": "subscribe", "filters": [{"event_type": "Custom.Note"}]}))
                assert "subscribed" in str(each.recv(20))

            def heard(number: int) -> str:
                """The next event, of one in each world."""
                for world in ("default", "acme"):
                    sent(operator.post("/api/v1/events", json=note(world, "x", id=f"evt_{world}{number}")))
                return str(json.loads(socket.recv(20))["event"]["metadata"]["id"])

            assert heard(1) == "evt_default1"
            assert "evt_acme1" in str(socket.recv(20))
            give(stack, "acme")
            until(lambda: bea.get("/api/v1/worlds/default").status_code == 404, 10)
            assert heard(2) == "evt_acme2"
            give(stack)
            until(lambda: bea.get("/api/v1/worlds").status_code == 401, 10)
            sent(operator.post("/api/v1/events", json=note("acme", "x", id="evt_acme3")))
            while "evt_acme3" not in str(other.recv(20)):  # it was offered to both at once
                pass
            give(stack, "acme")
            until(lambda: bea.get("/api/v1/worlds").status_code == 200, 10)
            assert heard(4) == "evt_acme4"


def test_what_is_taken_away_is_missing_from_the_next_event_on(stack: Stack, bea: httpx.Client) -> None:
    with endpoint() as receiver, stack.http() as operator:
        plant(operator, receiver)
        give(stack, "acme", "default")
        until(lambda: bea.get("/api/v1/worlds").status_code == 200, 10)
        wanted = {"name": "bea-ring", "url": f"{receiver.url}bea", "event_filters": [{"event_type": "Custom.Note"}]}
        webhook = sent(bea.post("/api/v1/webhooks", json=wanted))["id"]
        sent(bea.post("/api/v1/hooks", json=hook("bea-post")))
        # Of the default world she sees what is not of all worlds.
        types = {f"{event['type']}.{event['data']['event']}" for event in shown(bea)}
        assert "Memory.Created" in types
        assert not types & {"System.Started", "System.ConfigChanged"}
        about = [event["data"]["payload"]["world_id"] for event in shown(bea) if event["type"] == "System"]
        assert about == ["acme"]
        sent(operator.post("/api/v1/events", json=[note("default", "x", id="evt_d1"), note("acme", "x", id="evt_a1")]))
        until(lambda: {"evt_d1", "evt_a1"} <= receiver.event_ids(), 20)
        give(stack, "acme")
        until(lambda: bea.get("/api/v1/worlds/default").status_code == 404, 10)
        sent(operator.post("/api/v1/events", json=[note("default", "x", id="evt_d2"), note("acme", "x", id="evt_a2")]))
        until(lambda: "evt_a2" in receiver.event_ids(), 20)
        attempts = sent(bea.get(f"/api/v1/webhooks/{webhook}/attempts"))["attempts"]
        assert {one["world_id"] for one in attempts} == {"acme"}
        give(stack)
        until(lambda: bea.get("/api/v1/worlds").status_code == 401, 10)
        sent(operator.post("/api/v1/events", json=[note("acme", "x", id="evt_a3")]))
        states = [operator.get(f"/api/v1/{kind}").json()["state"] for kind in (f"webhooks/{webhook}", "hooks/bea-post")]
        assert states == [f"inert: its owner {BEA} may see nothing any more"] * 2
        give(stack, "acme")
        until(lambda: bea.get("/api/v1/worlds").status_code == 200, 10)
        sent(operator.post("/api/v1/events", json=[note("acme", "x", id="evt_a4")]))
        until(lambda: "evt_a4" in receiver.event_ids(), 20)
        assert not {"evt_d2", "evt_a3"} & receiver.event_ids()
