"""A tiny app that plays the gateway's part of the contract, served by uvicorn on a free port; all in memory."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketClose

from .played_places import Places, place_routes
from .played_replays import replay_routes

KEY = "ck_test"
PROBLEMS = "https://crucible.dev/problems/"
COUNTERS = {"matched": 2, "invoked": 2, "ok": 1, "failed": 1, "skipped": 0, "last_fired": None}
BROKEN = Response("too short", headers={"content-length": "1000"})
"""An answer that breaks the connection: it is shorter than it says."""


class Played:
    """What the app remembers, and what the test wants of it.

    `troubles` are answers given, in order, instead of the real ones; `after_commit` the same, but the request is done
    first. `stream_limit` ends each stream after so many events, `export_limit` breaks each export.
    `wishes` are what the WebSockets asked for.
    """

    def __init__(self) -> None:
        self.url = ""
        self.log: list[dict[str, Any]] = []
        self.known: dict[str, dict[str, Any]] = {}
        self.hooks: dict[str, dict[str, Any]] = {}
        self.webhooks: dict[str, dict[str, Any]] = {}
        self.memories: dict[str, dict[str, Any]] = {}
        self.replays: dict[str, dict[str, Any]] = {}
        self.places = Places()
        self.types = {"Memory.Created": _type("Memory.Created", description="A memory was made.")}
        self.verdicts: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.troubles: list[Response] = []
        self.after_commit: list[Response] = []
        self.frames: list[str] = []
        self.stream_limit: int | None = None
        self.export_limit: int | None = None
        self.wishes: list[dict[str, Any]] = []

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return [event["data"]["payload"] for event in self.log]

    def append(self, sent: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        if sent["type"] == "Memory.Denied":
            raise problem(422, "denied", "a hook said no", hook="guard", reason="no title")
        known = self.known.get(sent.get("id") or "") or self.known.get(key or "")
        if known:
            return known | {"duplicate": True}
        category, _, name = sent["type"].partition(".")
        if category not in ("File", "Memory", "Custom"):
            refused = [{"path": "type", "message": f'unknown type "{sent["type"]}"', "suggestion": "Memory.Created"}]
            raise problem(422, "invalid", "the event was refused", errors=refused)
        sequence = len(self.log) + 1
        event_id = sent.get("id") or f"evt_{sequence}"
        metadata = {
            "id": event_id,
            "timestamp": "2026-11-21T10:00:00.123456Z",
            "source": {"kind": "user", "id": "alice"},
            "actor": "user:alice",
            "correlation_id": sent.get("correlation_id") or f"cor_{sequence}",
            "entity": sent.get("entity"),
        }
        data = {"event": name, "payload": sent.get("payload", {})}
        self.log.append({"type": category, "data": data, "metadata": metadata, "sequence": sequence})
        answer = {"id": event_id, "sequence": sequence, "type": sent["type"]}
        answer["correlation_id"] = metadata["correlation_id"]
        self.known[event_id] = self.known[key or event_id] = answer
        return answer


def _type(
    type: str,
    schema: Any = None,
    version: str = "1.0.0",
    description: str = "",
    aliases: Any = (),
    registered: bool = False,
) -> dict[str, Any]:
    names = {"type": type, "description": description, "aliases": list(aliases), "open": False}
    state = {"version": version, "versions": [version], "registered": registered, "count": 2}
    return {**names, **state, "schema": schema or {}, "schemas": {version: schema or {}}}


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The URL of `app`, served by uvicorn in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def playing() -> Iterator[Played]:
    played = Played()
    with serving(create_app(played)) as url:
        played.url = url
        yield played


def problem(status: int, code: str, detail: str, **members: Any) -> HTTPException:
    return HTTPException(
        status, {"type": PROBLEMS + code, "title": code, "status": status, "detail": detail, **members}
    )


def trouble(status: int, code: str, retry_after: str | None = None) -> Response:
    """A refusal to put into `troubles`."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return JSONResponse({"type": PROBLEMS + code, "detail": code}, status, headers, "application/problem+json")


def create_app(played: Played) -> Any:
    async def events(request: Request) -> Response:
        if request.method == "GET":
            return _page(played, request)
        ndjson = request.headers["content-type"] == "application/x-ndjson"
        sent = (await request.body()).splitlines() if ndjson else await request.json()
        if not isinstance(sent, list):
            answer = played.append(sent, request.headers.get("idempotency-key"))
            return JSONResponse(answer, 200 if answer.get("duplicate") else 201)
        results: list[dict[str, Any]] = []
        for one in sent:
            try:
                results.append(played.append(json.loads(one) if ndjson else one))
            except json.JSONDecodeError as error:
                results.append({"error": {"type": PROBLEMS + "malformed", "detail": f"no JSON: {error}"}})
            except HTTPException as error:
                results.append({"error": error.detail})
        return JSONResponse({"committed": sum("id" in result for result in results), "results": results})

    async def export(request: Request) -> Response:
        after = int(request.query_params.get("after", 0))
        found = [json.dumps(event).encode() for event in _wanted(played, request) if event["sequence"] > after]
        limit = played.export_limit
        if limit is not None and len(found) > limit:
            broken = b"\n".join(found[:limit]) + b"\n" + found[limit][:20]
            return Response(broken, headers={"content-length": "1000000"}, media_type="application/x-ndjson")
        return Response(b"".join(b"%b\n" % line for line in found) + b"\n", media_type="application/x-ndjson")

    async def count(request: Request) -> Response:
        """In parts of two events."""
        after = int(request.query_params.get("after", 0))
        found = [event for event in _wanted(played, request) if event["sequence"] > after]
        part, rest = found[:2], found[2:]
        keys = Counter(f"{event['type']}.{event['data']['event']}" for event in part)
        groups = [{"key": key, "count": n} for key, n in keys.items()] if "by" in request.query_params else []
        counted_to = part[-1]["sequence"] if part else after
        return JSONResponse({"count": len(part), "groups": groups, "complete": not rest, "counted_to": counted_to})

    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        wish = await socket.receive_json()
        played.wishes.append(wish)
        position = {"now": len(played.log), "start": 0}.get(wish["from"], wish["from"])
        await socket.send_json({"type": "subscribed", "subscription": "sub_1", "sequence": position})
        for frame in played.frames:
            await socket.send_text(frame)
        left = played.stream_limit
        while left is None or left > 0:
            if position < len(played.log):
                event = played.log[position]
                position += 1
                left = None if left is None else left - 1
                body = {"type": "event", "subscription": "sub_1", "sequence": event["sequence"], "event": event}
                await socket.send_json(body)
            else:
                await asyncio.sleep(0.01)
        await socket.close()

    async def event(request: Request) -> Response:
        for found in played.log:
            if found["metadata"]["id"] == request.path_params["id"]:
                return JSONResponse(found)
        raise problem(404, "not_found", f"no event {request.path_params['id']}")

    async def redact(request: Request) -> Response:
        for event in played.log:
            if event["metadata"]["id"] == request.path_params["id"]:
                event["data"]["payload"] = {}
                told = {"tombstone": "evt_t", "at": "2026-11-21T10:00:00.000000Z", "by": "user:alice"}
                event["redacted"] = told | json.loads(await request.body())
                return JSONResponse(event)
        raise problem(404, "not_found", "there is no such event")

    async def trace(request: Request) -> Response:
        correlation = request.path_params["id"]
        chain = [found for found in played.log if found["metadata"]["correlation_id"] == correlation]
        nodes = [{"event": found, "elapsed_ms": 12.5 * n, "effects": []} for n, found in enumerate(chain)]
        for cause, effect in pairwise(nodes):
            cause["effects"] = [effect]
        reply = {"correlation_id": correlation, "count": len(chain), "truncated": False, "roots": nodes[:1]}
        return JSONResponse(reply)

    async def types(request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"types": list(played.types.values())})
        sent = await request.json()
        made = _type(**sent, registered=True)
        created = played.types.get(sent["type"]) != made
        played.types[sent["type"]] = made
        return JSONResponse(made, 201 if created else 200)

    async def type_(request: Request) -> Response:
        name = request.path_params["type"]
        if name not in played.types:
            raise problem(404, "not_found", f"there is no event type {name}")
        found = played.types[name]
        if request.method == "GET":
            return JSONResponse(found)
        if not found["registered"]:
            raise problem(409, "conflict", f"{name} is built in")
        del played.types[name]
        return Response(status_code=204)

    async def stream(request: Request) -> Response:
        after = request.headers.get("last-event-id") or request.query_params["from"]
        position = {"now": len(played.log), "start": 0}.get(after) if not after.isdigit() else int(after)
        return StreamingResponse(_frames(played, position or 0), media_type="text/event-stream")

    async def hooks(request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"hooks": list(played.hooks.values())})
        markdown = request.headers["content-type"].startswith("text/markdown")
        definition = (
            {"name": "from-file", "text": (await request.body()).decode()} if markdown else await request.json()
        )
        if "name" not in definition:
            refused = [{"path": "name", "message": "is missing"}]
            raise problem(422, "invalid", "the hook was refused", errors=refused)
        played.hooks[definition["name"]] = _hook(definition)
        return JSONResponse(_hook(definition), 201)

    async def hook(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in played.hooks:
            raise problem(404, "not_found", f"no hook {name}")
        if request.method == "DELETE":
            del played.hooks[name]
            return Response(status_code=204)
        change = request.path_params.get("change")
        if change:
            played.hooks[name]["state"] = "active" if change == "enable" else "disabled"
        if request.method == "PATCH":
            played.hooks[name] |= await request.json()
        return JSONResponse(played.hooks[name])

    async def runs(request: Request) -> Response:
        records = [_run(request.path_params["name"], number) for number in range(3)]
        return JSONResponse({"runs": _slice(request, records)[0], "next_cursor": _slice(request, records)[1]})

    async def run(request: Request) -> Response:
        record = _run("tidy", 0) | {"run_id": request.path_params["id"], "log": ["looked [/red]"], "output": {"n": 1}}
        return JSONResponse({"runs": [record], "next_cursor": None})

    async def webhooks(request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"webhooks": list(played.webhooks.values())})
        sent = await request.json()
        made = _webhook(f"whk_{len(played.webhooks) + 1}", sent)
        played.webhooks[made["id"]] = made
        return JSONResponse(made | {"secret": "whsec_c2VjcmV0"}, 201)

    async def webhook(request: Request) -> Response:
        given, change = request.path_params["id"], request.path_params.get("change")
        kept = next((one for one in played.webhooks.values() if given in (one["id"], one["name"])), None)
        if kept is None:
            raise problem(404, "not_found", f"there is no webhook {given!r}")
        if request.method == "DELETE":
            del played.webhooks[kept["id"]]
            return Response(status_code=204)
        if request.method == "PATCH":
            kept |= await request.json()
        if change in ("enable", "disable"):
            kept["state"] = "active" if change == "enable" else "disabled"
        if change == "rotate-secret":
            return JSONResponse(kept | {"secret": "whsec_bmV3", "old_secret_until": "2026-11-22T10:00:00.000000Z"})
        return JSONResponse(kept | {"waiting": 2})

    async def resend(request: Request) -> Response:
        sent = await request.json()
        resent = {"delivery_id": "dlv_9", "webhook_id": sent["webhook"], "event_id": request.path_params["id"]}
        return JSONResponse(resent, 202)

    async def attempts(request: Request) -> Response:
        records = [_attempt(request.path_params["id"], number) for number in range(3)]
        return JSONResponse({"attempts": _slice(request, records)[0], "next_cursor": _slice(request, records)[1]})

    async def check(request: Request) -> Response:
        asked = await request.json()
        name = request.path_params["name"]
        verdict = played.verdicts.get(name, "live")
        if verdict == "refused":
            raise problem(404, "not_found", f"nobody knows {name}")
        reason = None if verdict == "live" else "it would not fire"
        steps = [{"step": "matched", "ok": True, "detail": f"dry_run={asked['dry_run']}"}]
        return JSONResponse({"name": name, "verdict": verdict, "reason": reason, "duration_ms": 3.5, "steps": steps})

    async def check_all(request: Request) -> Response:
        """A page has one check, so that whoever asks must go on."""
        kept = played.webhooks if request.path_params["kind"] == "webhooks" else played.hooks
        rest = sorted(id for id in kept if id > request.query_params.get("cursor", ""))
        checks = []
        for id in rest[:1]:
            verdict = played.verdicts.get(id, "live")
            reason = None if verdict == "live" else "it would not fire"
            found = {"name": kept[id]["name"], "verdict": verdict, "reason": reason, "duration_ms": 3.5, "steps": []}
            checks.append({"id": id, "check": found})
        return JSONResponse({"checks": checks, "next_cursor": rest[0] if len(rest) > 1 else None})

    async def memories(request: Request) -> Response:
        sent = await request.json()
        made = _memory(f"mem_{len(played.memories) + 1}", sent, len(played.memories) + 1)
        played.memories[made["id"]] = made
        return JSONResponse({"id": made["id"], "sequence": made["sequence"]}, 201)

    async def memory(request: Request) -> Response:
        found = played.memories.get(request.path_params["id"])
        if found is None:
            raise problem(404, "not_found", "no such memory")
        if request.headers.get("if-match", f'"{found["sequence"]}"') != f'"{found["sequence"]}"':
            raise problem(409, "conflict", "the memory has changed", current_sequence=found["sequence"])
        if request.method == "DELETE":
            del played.memories[found["id"]]
            return Response(status_code=204)
        if request.method == "PATCH":
            found |= (await request.json()) | {"sequence": found["sequence"] + 1}
        return JSONResponse(found)

    async def memory_status(request: Request) -> Response:
        latest = [{"sequence": 3, "reason": "ValidationError: [/red] Expected `str`"}]
        return JSONResponse({"sequence": 7, "memories": len(played.memories), "skipped": 1, "latest": latest})

    async def query(request: Request) -> Response:
        asked = await request.json()
        text, prefix = asked.get("text") or "", asked.get("filter", {}).get("id", {}).get("starts_with", "")
        memories = [memory for memory in played.memories.values() if memory["id"].startswith(prefix)]
        found = [memory | {"score": 0.5} for memory in memories if text in memory["content"]]
        return JSONResponse({"memories": found})

    routes = [
        *replay_routes(played),
        Route("/readyz", lambda request: JSONResponse({"ready": True})),
        Route("/api/v1/events", events, methods=["GET", "POST"]),
        Route("/api/v1/events/stream", stream),
        WebSocketRoute("/api/v1/events/stream", socket),
        Route("/api/v1/events/export", export),
        Route("/api/v1/events/count", count),
        Route("/api/v1/events/trace/{id}", trace),
        Route("/api/v1/events/{id}", event),
        Route("/api/v1/events/{id}/redact", redact, methods=["POST"]),
        Route("/api/v1/events/{id}/resend", resend, methods=["POST"]),
        Route("/api/v1/event-types", types, methods=["GET", "POST"]),
        Route("/api/v1/event-types/{type}", type_, methods=["GET", "DELETE"]),
        Route("/api/v1/hooks", hooks, methods=["GET", "POST"]),
        Route("/api/v1/hooks/{name}", hook, methods=["GET", "PATCH", "DELETE"]),
        Route("/api/v1/hooks/{name}/runs", runs),
        Route("/api/v1/runs/{id}", run),
        Route("/api/v1/{kind}/test", check_all, methods=["POST"]),
        Route("/api/v1/{kind}/{name}/test", check, methods=["POST"]),
        Route("/api/v1/hooks/{name}/{change}", hook, methods=["POST"]),
        Route("/api/v1/webhooks", webhooks, methods=["GET", "POST"]),
        Route("/api/v1/webhooks/{id}", webhook, methods=["GET", "PATCH", "DELETE"]),
        Route("/api/v1/webhooks/{id}/attempts", attempts),
        Route("/api/v1/webhooks/{id}/{change}", webhook, methods=["POST"]),
        Route("/api/v1/memory", memories, methods=["POST"]),
        Route("/api/v1/memory/query", query, methods=["POST"]),
        Route("/api/v1/memory/status", memory_status),
        Route("/api/v1/memory/{id}", memory, methods=["GET", "PATCH", "DELETE"]),
        *place_routes(played.places),
    ]

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(error.detail, error.status_code, media_type="application/problem+json")

    return _Door(Starlette(routes=routes, exception_handlers={HTTPException: refused}), played)


class _Door:
    """Looks at the key, writes down each request, and gives the troubles instead of the real answers."""

    def __init__(self, app: Starlette, played: Played) -> None:
        self._app = app
        self._played = played

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            allowed = WebSocket(scope, receive, send).headers.get("authorization") == f"Bearer {KEY}"
            await (self._app if allowed else WebSocketClose(4401))(scope, receive, send)
            return
        request = Request(scope, receive)
        body = await request.body()
        self._played.requests.append((request.method, scope["raw_path"].decode(), dict(request.headers), body))

        asked = False

        async def again() -> Any:
            nonlocal asked
            if asked:
                return await receive()
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def nowhere(message: Any) -> None:
            pass

        if request.headers.get("authorization") != f"Bearer {KEY}" and request.url.path != "/readyz":
            await trouble(401, "unauthenticated")(scope, receive, send)
        elif self._played.troubles:
            await self._played.troubles.pop(0)(scope, receive, send)
        elif self._played.after_commit:
            await self._app(scope, again, nowhere)
            await self._played.after_commit.pop(0)(scope, receive, send)
        else:
            await self._app(scope, again, send)


async def _frames(played: Played, position: int) -> AsyncIterator[str]:
    for frame in played.frames:
        yield frame
    left = played.stream_limit
    while left is None or left > 0:
        if position < len(played.log):
            event = played.log[position]
            position += 1
            left = None if left is None else left - 1
            body = {"type": "event", "subscription": "sub_1", "sequence": event["sequence"], "event": event}
            yield f"id: {position}\nevent: event\ndata: {json.dumps(body)}\n\n"
        else:
            await asyncio.sleep(0.01)


def _wanted(played: Played, request: Request) -> list[dict[str, Any]]:
    types = request.query_params.getlist("type")
    return [e for e in played.log if not types or f"{e['type']}.{e['data']['event']}" in types]


def _page(played: Played, request: Request) -> Response:
    after = int(request.query_params.get("after", 0))
    found = [event for event in _wanted(played, request) if event["sequence"] > after]
    if request.query_params.get("order") == "desc":
        found.reverse()
    events, cursor = _slice(request, found)
    return JSONResponse({"events": events, "next_cursor": cursor})


def _slice(request: Request, items: list[Any]) -> tuple[list[Any], str | None]:
    start, limit = int(request.query_params.get("cursor", 0)), int(request.query_params.get("limit", 100))
    return items[start : start + limit], str(start + limit) if start + limit < len(items) else None


def _hook(definition: dict[str, Any]) -> dict[str, Any]:
    kept = {"name": definition["name"], "state": "active", "timing": "Post", "priority": 100, "origin": "api"}
    return kept | {"definition": definition, "counters": COUNTERS, "updated_at": "", "order": None}


def _webhook(id: str, sent: dict[str, Any]) -> dict[str, Any]:
    filters = [
        {"event_type": entry["event_type"], "filter": entry.get("filter", {})} for entry in sent["event_filters"]
    ]
    kept = {"id": id, "name": sent["name"], "url": sent["url"], "event_filters": filters, "state": "active"}
    kept |= {"auth_type": (sent.get("auth") or {"type": "hmac"})["type"], "options": sent.get("options", {})}
    return kept | {"counters": COUNTERS, "created_at": "", "updated_at": ""}


def _memory(id: str, sent: dict[str, Any], sequence: int) -> dict[str, Any]:
    empty: dict[str, Any] = {"tags": [], "entities": [], "links": [], "metadata": {}}
    place = {"world_id": "default", "room_id": "main", "created_at": "", "updated_at": "", "sequence": sequence}
    return empty | sent | place | {"id": id}


def _run(hook: str, number: int) -> dict[str, Any]:
    cause = {"event_id": "evt_1", "event_type": "Memory.Created", "correlation_id": "cor_1", "timing": "Post"}
    went = {"attempt": 1, "outcome": "ok", "started_at": "2026-11-21T10:00:00.123456Z", "duration_ms": 4.2}
    return {"run_id": f"run_{number}", "hook": hook} | cause | went


def _attempt(webhook: str, number: int) -> dict[str, Any]:
    cause = {"event_id": "evt_1", "event_type": "Memory.Created", "event_sequence": 1, "correlation_id": "cor_1"}
    went = {"attempt": 1, "outcome": "delivered", "started_at": "2026-11-21T10:00:00.1Z", "duration_ms": 4.2}
    return {"delivery_id": f"dlv_{number}", "webhook_id": webhook, "status": 200} | cause | went
