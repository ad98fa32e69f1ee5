"""Hooks, webhooks, memories and queries: what the services are asked, and how their answers come back."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
from msgspec import UNSET

from crucible_core.errors import ConflictError, NotFoundError
from crucible_core.protocol import parts
from crucible_core.protocol.events import QueryRequest, TracedDelivery, TraceNode, TraceReply, TraceRequest
from crucible_core.protocol.hooks import HookList, HookView, RegisterHook, RunList, RunsRequest
from crucible_core.protocol.memory import Link, MemoryList, MemoryQuery, WriteMemory, WrittenMemory
from crucible_core.protocol.parts import Check, Counters, EnableHook, GetRequest
from crucible_core.protocol.webhooks import (
    CreateWebhook,
    EnableWebhook,
    ResendEvent,
    RotateSecret,
    TracedDeliveries,
    TracedRequest,
    UpdateWebhook,
)
from crucible_gateway import examples
from crucible_kit.nats.bus import Bus
from tests.cases import each_of

from .conftest import answering

COUNTERS = Counters()
HOOK = HookView(
    name="h", state="active", timing="Post", priority=1, origin="api", definition={}, counters=COUNTERS, updated_at=""
)


async def test_hooks(http: httpx.AsyncClient, bus: Bus) -> None:
    nothing = msgspec.defstruct("Nothing", [])
    async with answering(
        bus,
        "hooks",
        list=nothing,
        register=RegisterHook,
        get=GetRequest,
        delete=GetRequest,
        enable=EnableHook,
        runs=RunsRequest,
        test=parts.TestRequest,
    ) as hooks:
        hooks.replies = {
            **dict.fromkeys(("register", "get", "delete", "enable"), HOOK),
            "list": HookList(hooks=[HOOK]),
            "runs": RunList(runs=[]),
            "test": Check(name="h", verdict="live"),
        }
        assert (await http.get("/api/v1/hooks")).json()["hooks"][0]["name"] == "h"
        made = await http.post("/api/v1/hooks", json={"name": "h"})
        assert (made.status_code, hooks.last.definition) == (201, {"name": "h"})
        markdown = {"Content-Type": "text/markdown"}
        assert (await http.post("/api/v1/hooks", content="---\nname: ü\n---", headers=markdown)).status_code == 201
        assert hooks.last.markdown == "---\nname: ü\n---"
        assert (await http.post("/api/v1/hooks", content=b"\xff", headers=markdown)).status_code == 400
        assert (await http.post("/api/v1/hooks", json=[])).status_code == 422
        for kind in ("text/yaml", "application/yaml", "application/x-yaml", "text/x-yaml", "TEXT/YAML; charset=utf-8"):
            sent = await http.post("/api/v1/hooks", content="name: ü".encode("utf-16"), headers={"Content-Type": kind})
            assert (sent.status_code, hooks.last.markdown) == (201, "name: ü"), kind
        twice = await http.post(
            "/api/v1/hooks", content='{"a": {"b": 1, "b": 2}}', headers={"Content-Type": "application/json"}
        )
        assert (twice.status_code, twice.json()["errors"][0]["path"]) == (400, "a.b")
        assert (await http.get("/api/v1/hooks/a%20b")).json()["state"] == "active"
        assert hooks.last.id == "a b"
        assert (await http.post("/api/v1/hooks/h/enable")).status_code == 200
        assert hooks.last.enabled
        assert (await http.post("/api/v1/hooks/h/disable")).status_code == 200
        assert not hooks.last.enabled
        assert (await http.get("/api/v1/hooks/h/runs", params={"limit": 7})).json()["runs"] == []
        assert hooks.last.limit == 7
        assert (await http.post("/api/v1/hooks/h/test")).json()["verdict"] == "live"
        assert hooks.last.dry_run
        body = {"dry_run": False, "payload": {"a": 1}}
        assert (await http.post("/api/v1/hooks/h/test", json=body)).status_code == 200
        assert (hooks.last.dry_run, hooks.last.payload) == (False, {"a": 1})
        wrong = await http.post("/api/v1/hooks/h/test", json={"dryrun": False})
        assert wrong.json()["errors"][0]["suggestion"] == "dry_run"
        assert (await http.delete("/api/v1/hooks/h")).status_code == 204
        hooks.replies["get"] = NotFoundError("no hook x")
        assert (await http.get("/api/v1/hooks/x")).status_code == 404


async def test_webhooks(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(
        bus,
        "webhooks",
        create=CreateWebhook,
        update=UpdateWebhook,
        enable=EnableWebhook,
        rotate_secret=RotateSecret,
        test=parts.TestRequest,
        resend=ResendEvent,
    ) as webhooks:
        view = msgspec.json.encode(examples.WEBHOOK_VIEW)
        webhooks.replies = dict.fromkeys(("create", "update", "enable", "rotate_secret"), view)
        webhooks.replies["test"] = Check(name="ci", verdict="live")
        webhooks.replies["resend"] = msgspec.json.encode(examples.RESENT)
        made = await http.post("/api/v1/webhooks", json=examples.WEBHOOK)
        assert (made.status_code, made.json()) == (201, examples.WEBHOOK_VIEW)
        assert webhooks.last.event_filters[0].event_type == "Memory.*"
        body: dict[str, Any] = {"name": "x", "url": "u", "event_filters": [{"event_typ": "a", "event_type": "b"}]}
        wrong = await http.post("/api/v1/webhooks", json=body | {"auth": {"type": "hmac", "sekret": "x"}})
        assert [error["path"] for error in wrong.json()["errors"]] == ["event_filters.0.event_typ", "auth.sekret"]
        assert (await http.post("/api/v1/webhooks/whk_1/disable")).status_code == 200
        assert webhooks.last == EnableWebhook(id="whk_1", enabled=False)
        assert (await http.post("/api/v1/webhooks/whk_1/enable")).status_code == 200
        assert webhooks.last == EnableWebhook(id="whk_1", enabled=True)
        assert (await http.post("/api/v1/webhooks/ci/enable", json={"missed": "skip"})).status_code == 200
        assert webhooks.last == EnableWebhook(id="ci", enabled=True, missed="skip")
        assert (await http.post("/api/v1/webhooks/ci/enable", json={"missed": "drop"})).status_code == 422
        assert (await http.post("/api/v1/webhooks/ci/rotate-secret")).json() == examples.WEBHOOK_VIEW
        assert webhooks.last == RotateSecret(id="ci", grace_s=86_400)
        assert (await http.post("/api/v1/webhooks/ci/rotate-secret", json={"grace_s": -1})).status_code == 422
        assert (await http.post("/api/v1/webhooks/ci/test")).json()["verdict"] == "live"
        assert not webhooks.last.dry_run
        assert (await http.post("/api/v1/webhooks/ci/test", json={"dry_run": True, "type": "X"})).status_code == 200
        assert (webhooks.last.dry_run, webhooks.last.type) == (True, "X")
        resent = await http.post("/api/v1/events/evt_1/resend", json={"webhook": "ci"})
        assert (resent.status_code, resent.json()) == (202, examples.RESENT)
        assert webhooks.last == ResendEvent(event_id="evt_1", webhook="ci")
        assert (await http.post("/api/v1/events/evt_1/resend", json={})).status_code == 422


async def test_webhook_patch(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(bus, "webhooks", update=UpdateWebhook) as webhooks:
        webhooks.replies["update"] = msgspec.json.encode(examples.WEBHOOK_VIEW)
        sent: dict[str, Any] = {"name": "x", "options": None, "auth": {"type": "hmac", "token": None}, "paused": True}
        for kind in ("application/json", "application/merge-patch+json"):
            headers = {"Content-Type": kind}
            changed = await http.patch("/api/v1/webhooks/ci", content=json.dumps(sent), headers=headers)
            assert (changed.status_code, webhooks.last) == (200, UpdateWebhook(id="ci", patch=sent))
        refused = {"enabled": False, "auth": {"sekret": "x"}, "options": {"timeout": 1}}
        wrong = await http.patch("/api/v1/webhooks/ci", json=refused)
        paths = {error["path"] for error in wrong.json()["errors"]}
        assert (wrong.status_code, paths) == (422, {"enabled", "auth.sekret", "options.timeout"})
        for null in ("name", "url", "event_filters", "auth", "paused"):
            assert (await http.patch("/api/v1/webhooks/ci", json={null: None})).status_code == 422
        headers = {"Content-Type": "application/json-patch+json"}
        assert (await http.patch("/api/v1/webhooks/ci", content="[]", headers=headers)).status_code == 415


@pytest.mark.parametrize(
    ("sent", "link"),
    [
        ("mem_2", Link(target="mem_2")),
        ({"to": "mem_2", "type": "cites", "strength": 0.5}, Link(target="mem_2", type="cites", weight=0.5)),
        ({"target": "mem_2", "link_type": "cites", "weight": 1}, Link(target="mem_2", type="cites", weight=1.0)),
    ],
)
async def test_links_of_a_memory_in_every_form(http: httpx.AsyncClient, bus: Bus, sent: Any, link: Link) -> None:
    async with answering(bus, "memory", create=WriteMemory, update=WriteMemory) as memory:
        memory.replies = dict.fromkeys(("create", "update"), WrittenMemory("mem_1", 7))
        await http.post("/api/v1/memory", json={"content": "x", "links": [sent]})
        assert memory.last.create.links == [link]
        await http.patch("/api/v1/memory/mem_1", json={"links": [sent]})
        assert memory.last.update.links == [link]


@each_of(
    ("link", "path"),
    [({"type": "x"}, "links.0.to"), ({"to": "a", "target": "b"}, "links.0.target"), ({"too": "a"}, "links.0.too")],
)
async def test_wrong_links_are_named(http: httpx.AsyncClient, link: Any, path: str) -> None:
    answer = await http.post("/api/v1/memory", json={"content": "x", "links": [link]})
    assert answer.status_code == 422
    assert path in [error["path"] for error in answer.json()["errors"]]


async def test_memory(http: httpx.AsyncClient, bus: Bus) -> None:
    kinds = dict.fromkeys(("create", "update", "delete"), WriteMemory)
    async with answering(bus, "memory", get=GetRequest, query=MemoryQuery, **kinds) as memory:
        memory.replies = {
            **dict.fromkeys(kinds, WrittenMemory(id="mem_1", sequence=7)),
            "get": msgspec.json.encode(examples.MEMORY_VIEW),
            "query": MemoryList(memories=[]),
        }
        made = await http.post("/api/v1/memory", json={"content": "x"}, headers={"Idempotency-Key": "k"})
        assert (made.status_code, made.json(), made.headers["ETag"]) == (201, {"id": "mem_1", "sequence": 7}, '"7"')
        assert (memory.last.cause.actor, memory.last.cause.key) == ("user:admin", "k")
        chain = {"Crucible-Hop": "2", "Crucible-Correlation-Id": "cor_1"}
        assert (await http.post("/api/v1/memory", json={"content": "x"}, headers=chain)).status_code == 201
        assert (memory.last.cause.hop, memory.last.cause.correlation_id) == (3, "cor_1")
        there = {"content": "x", "world_id": "acme", "room_id": "lab"}
        assert (await http.post("/api/v1/memory", json=there)).status_code == 201
        assert (memory.last.cause.world_id, memory.last.cause.room_id) == ("acme", "lab")
        found = await http.get("/api/v1/memory/mem_1")
        assert (found.json()["id"], found.headers["ETag"]) == (examples.MEMORY_VIEW["id"], '"42"')
        changed = await http.patch("/api/v1/memory/mem_1", json={"tags": []}, headers={"If-Match": '"7"'})
        assert (changed.status_code, memory.last.expected_sequence, memory.last.update.tags) == (200, 7, [])
        assert memory.last.anywhere
        assert (await http.patch("/api/v1/memory/m", json={}, headers={"If-Match": "abc"})).status_code == 422
        assert (await http.delete("/api/v1/memory/mem_1")).status_code == 204
        assert (memory.last.expected_sequence, memory.last.anywhere) == (None, True)
        assert (await http.post("/api/v1/memory/query", json={"text": "x"})).json() == {"memories": []}
        wrong = await http.post("/api/v1/memory/query", json={"txt": "x"})
        assert wrong.json()["errors"] == [{"path": "txt", "message": "unknown field", "suggestion": "text"}]
        many = await http.post("/api/v1/memory/query", json={"text": "x", **{f"txt{i}": 1 for i in range(1000)}})
        assert len(many.json()["errors"]) == 20


async def test_a_memory_is_patched_by_merging(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(bus, "memory", update=WriteMemory) as memory:
        memory.replies = {"update": WrittenMemory(id="mem_1", sequence=7)}
        headers = {"Content-Type": "application/merge-patch+json"}
        body = b'{"tags": null, "metadata": {"a": null, "b": {"c": 1}}}'
        assert (await http.patch("/api/v1/memory/mem_1", content=body, headers=headers)).status_code == 200
        wanted = memory.last.update
        assert (wanted.tags, wanted.metadata) == (None, {"a": None, "b": {"c": 1}})
        assert wanted.content is UNSET
        refused = await http.patch("/api/v1/memory/mem_1", json={"content": None})
        assert (refused.status_code, [error["path"] for error in refused.json()["errors"]]) == (422, ["content"])


async def test_a_version_that_is_gone_is_409_and_one_that_is_known_304(http: httpx.AsyncClient, bus: Bus) -> None:
    kinds = dict.fromkeys(("update", "delete"), WriteMemory)
    async with answering(bus, "memory", get=GetRequest, **kinds) as memory:
        memory.replies = dict.fromkeys(kinds, ConflictError("the memory is at sequence 7", current_sequence=7))
        memory.replies["get"] = msgspec.json.encode(examples.MEMORY_VIEW)
        path = "/api/v1/memory/mem_1"
        for match in ('"6"', 'W/"6"', '"x"'):
            refused = await http.patch(path, json={"tags": []}, headers={"If-Match": match})
            assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (409, "conflict")
        refused = await http.delete(path, headers={"If-Match": '"6"'})
        assert (refused.status_code, refused.json()["current_sequence"]) == (409, 7)
        # Without a condition it is a conflict among writers.
        for headers in ({}, {"If-Match": "*"}):
            assert (await http.delete(path, headers=headers)).status_code == 409
        for known in ('"42"', 'W/"42"', '"41", "42"', "*"):
            same = await http.get(path, headers={"If-None-Match": known})
            assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", '"42"')
        assert (await http.get(path, headers={"If-None-Match": '"41"'})).status_code == 200


async def test_query_passes_through(http: httpx.AsyncClient, bus: Bus) -> None:
    kinds = {"query": QueryRequest, "get": GetRequest}
    async with answering(bus, "events", types=msgspec.defstruct("Nothing", []), **kinds) as events:
        page = b'{"events":[{"exact": 1.0 }],"next_cursor":null}'
        events.replies = dict.fromkeys(("query", "get", "types"), page)
        params = [
            ("type", "Memory.*"),
            ("type", "file.created"),
            ("order", "desc"),
            ("limit", "5"),
            ("filter", '{"a":{"gt":1}}'),
            ("from_time", "2026-11-21T10:00:00+01:00"),
        ]
        answer = await http.get("/api/v1/events", params=params)
        assert answer.content == page
        asked = events.last
        assert (asked.type, asked.order, asked.limit, asked.filter) == (
            ["Memory.*", "file.created"],
            "desc",
            5,
            {"a": {"gt": 1}},
        )
        # What a shell sends where the + of an offset was not escaped.
        await http.get("/api/v1/events?from_time=2026-11-21T10:00:00+01:00")
        assert events.last.from_time == "2026-11-21T10:00:00+01:00"
        assert (await http.get("/api/v1/events/evt_1")).content == page


def _node(id: str, *effects: TraceNode) -> TraceNode:
    event = {"metadata": {"id": id, "timestamp": "2026-11-21T10:00:00.000000Z"}, "exact": 1.0}
    return TraceNode(msgspec.Raw(msgspec.json.encode(event)), 0.0, list(effects))


def _delivery(event_id: str) -> TracedDelivery:
    return TracedDelivery("dlv_1", "whk_1", "ci", event_id, "delivered", 2, "2026-11-21T10:00:01.500000Z", 200)


async def test_trace_has_the_deliveries_of_each_event(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(bus, "events", trace=TraceRequest) as events:
        events.replies["trace"] = lambda _: TraceReply("cor_1", 2, False, [_node("evt_1", _node("evt_2"))])
        async with answering(bus, "webhooks", traced=TracedRequest) as webhooks:
            webhooks.replies["traced"] = TracedDeliveries([_delivery("evt_2")])
            found = (await http.get("/api/v1/events/trace/cor_1")).json()
        assert found["complete"] is True
        assert found["roots"][0]["deliveries"] == []
        [delivery] = found["roots"][0]["effects"][0]["deliveries"]
        assert (delivery["webhook"], delivery["attempts"], delivery["elapsed_ms"]) == ("ci", 2, 1500.0)
        assert (await http.get("/api/v1/events/trace/cor_1")).json()["complete"] is False


BAD = [
    ("limit=x", "limit", 422),
    ("limit=0", "limit", 422),
    ("limit=1001", "limit", 422),
    ("after=-1", "after", 422),
    ("after=" + "9" * 30, "after", 422),
    ("order=up", "order", 422),
    ("from_time=yesterday", "from_time", 422),
    ("to_time=2026-11-21", "to_time", 422),
    ("tipe=x", "tipe", 422),
    ("limit=1&limit=2", "limit", 422),
    ("filter={", "", 400),
    ("filter=[]", "", 422),
    ("actor=%FF", "", 422),
    ("actor=", "actor", 422),
]


async def test_bad_parameters_name_themselves(http: httpx.AsyncClient) -> None:
    for query, path, status in BAD:
        answer = await http.get(f"/api/v1/events?{query}")
        assert answer.status_code == status, (query, answer.text)
        if path:
            assert answer.json()["errors"][0]["path"] == path, query


@each_of("id", ["cor_1", "https://a.example/b//c?d=1#e", "//a/", "a%2Fb", "a b\u00e9", "trace/trace/"])
async def test_a_correlation_id_may_have_any_character(bus: Bus, http: httpx.AsyncClient, id: str) -> None:
    async with answering(bus, "events", trace=TraceRequest) as events:
        events.replies["trace"] = lambda request: TraceReply(request.correlation_id, 0, False, [])
        answer = await http.get(f"/api/v1/events/trace/{quote(id, safe='')}")
        assert answer.json()["correlation_id"] == id
    assert (await http.get("/api/v1/events/trace/")).status_code in (404, 503)
