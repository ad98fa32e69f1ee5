"""Keys, problems, operations and documentation: what holds of every request."""

import asyncio
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from crucible_cli.up import nats_server
from crucible_core.access import KeyRecord
from crucible_core.subjects import Names
from crucible_gateway.auth import key_hash
from crucible_gateway.openapi import operations
from crucible_gateway.routes.ops import content_policy
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import Bus, Message
from tests.cases import each_of

from .conftest import HEADERS, KEY, Answers, Serve, Served, launch, until

EVENTS = "/api/v1/events"


@each_of(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"X-API-Key": "wrong"},
        {"X-API-Key": "x" * 5000},
        {"Authorization": "Bearer wrong", "X-API-Key": KEY},
    ],
)
async def test_no_valid_key_is_401(gateway: Served, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post(EVENTS, json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].endswith("/unauthenticated")


@pytest.mark.parametrize("headers", [{"Authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}])
async def test_both_headers_carry_a_key(gateway: Served, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.get("/api/v1/hooks", headers=headers)).status_code == 503, "let in; nobody answers"


async def test_keys_come_and_go_while_it_runs(gateway: Served, bus: Bus, events: Answers) -> None:
    bucket = await open_bucket(bus, "keys")
    record = KeyRecord(id="key_1", name="alice", created_at="")

    async def status() -> int:
        event = {"type": "Custom.Ping"}
        return (await client.post(EVENTS, json=event, headers={"X-API-Key": "secret"})).status_code

    async def answers(wanted: int) -> bool:
        return await status() == wanted

    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert await status() == 401
        await bucket.put(key_hash("secret"), msgspec.json.encode(record))
        await until(lambda: answers(201))
        assert events.last.events[0].actor == "user:alice"
        await bucket.put(key_hash("secret"), msgspec.json.encode(msgspec.structs.replace(record, disabled=True)))
        await until(lambda: answers(401))
        await bucket.put(key_hash("secret"), b"no json")
        await bucket.put(key_hash("secret"), msgspec.json.encode(record))
        await until(lambda: answers(201))
        await bucket.delete(key_hash("secret"))
        await until(lambda: answers(401))


async def test_admin_key_is_made_once(start: Serve, bus: Bus) -> None:
    for _ in range(2):
        async with start():
            pass
    entries = await (await open_bucket(bus, "keys")).entries()
    assert list(entries) == [key_hash(KEY)]
    assert KEY.encode() not in entries[key_hash(KEY)].value


async def test_a_new_admin_key_ends_the_old_one(start: Serve, bus: Bus) -> None:
    """As when admin.key is moved away, and made anew at the next start; or when it is put back."""

    async def status(url: str, key: str) -> int:
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
            return (await client.get("/api/v1/retention")).status_code

    bucket = await open_bucket(bus, "keys")
    theirs = KeyRecord(id="key_1", name="alice", created_at="2026-11-21T10:00:00.000000Z")
    await bucket.put(key_hash("alices"), msgspec.json.encode(theirs))
    for new, old in (("first", None), ("second", "first"), ("first", "second")):
        async with start(admin_key=new) as served:
            assert await status(served.url, new) != 401
            assert await status(served.url, "alices") != 401
            if old is not None:
                assert await status(served.url, old) == 401
    async with start(admin_key="") as served:
        assert await status(served.url, "first") != 401


@each_of(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/api/v1/nope", 404), ("PUT", EVENTS, 405), ("DELETE", "/healthz", 405)],
)
async def test_frameworks_own_errors_are_problems(http: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["correlation_id"] == answer.headers["X-Correlation-Id"]
    if status == 405:
        assert "GET" in answer.headers["Allow"]


async def test_health_readiness_and_metrics_need_no_key(gateway: Served) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok", "service": "gateway"}
        assert (await client.get("/readyz")).json() == {"ready": True}
        assert (await client.get("/")).json()["links"]["docs"] == "/docs"
        await client.get("/made-up-path")
        scraped = await client.get("/metrics")
        assert scraped.headers.get_list("Content-Type") == ["text/plain; version=0.0.4; charset=utf-8"]
        text = scraped.text
    assert 'crucible_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in text
    assert 'route="unmatched",status="404"' in text
    assert "made-up-path" not in text


async def test_openapi_lists_every_route(gateway: Served) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        document = (await client.get("/openapi.json")).json()
    listed = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    served = {
        (route.path_format, method)
        for route in gateway.app.routes
        for method in getattr(route, "methods", ())
        if method != "OPTIONS"
    }
    assert listed == served
    assert document["openapi"].startswith("3.1")
    assert all(name in document["components"]["schemas"] for name in _references(document))


def _references(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"].removeprefix("#/components/schemas/")} if "/schemas/" in str(node.get("$ref")) else set()
        return own.union(*map(_references, node.values()))
    return set().union(*map(_references, node)) if isinstance(node, list) else set()


async def test_openapi_tells_of_every_success(gateway: Served) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/api/v1/events", "/api/v1/memory"):
        assert {"200", "201"} <= set(paths[path]["post"]["responses"])


async def test_examples_are_what_the_handlers_take(gateway: Served) -> None:
    checked = 0
    for *_, operation in operations(gateway.app):
        bodies = [(body.schema, body.example) for body in operation.bodies.values()]
        for kind, example in [*bodies, (operation.reply, operation.example)]:
            if example is not None and not isinstance(kind, dict):
                msgspec.json.decode(msgspec.json.encode(example), type=kind)
                checked += 1
    assert checked > 20


async def test_docs_page_needs_no_other_server(gateway: Served) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.get("/docs")
    assert "//" not in answer.text.replace("<!doctype html>", "").replace("/openapi.json", "")
    assert answer.headers["Content-Security-Policy"] == content_policy(answer.text)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


async def test_unexpected_failure_is_a_problem_without_its_cause(
    http: httpx.AsyncClient, gateway: Served, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    asked: asyncio.Queue[Message] = asyncio.Queue()
    await bus.listen(bus.names.rpc("memory", "get"), asked.put_nowait)
    answering = asyncio.create_task(http.get("/api/v1/memory/mem_1"))
    await bus.publish((await asked.get()).reply, b"no json")
    answer = await answering
    assert answer.status_code == 500
    assert answer.json()["type"].endswith("/internal")
    assert "JSON" not in answer.json()["detail"]
    assert "GET /api/v1/memory/mem_1 failed" in caplog.text


async def test_nats_away_is_503_at_once(tmp_path: Path, start: Serve) -> None:
    server = nats_server.prepare(tmp_path, nats_server.free_port(), sync="2m")
    process = launch(server.command)
    try:
        await until(server.ready)
        async with (
            start(nats_url=server.url, bus_prefix="") as served,
            httpx.AsyncClient(base_url=served.url) as client,
        ):
            process.terminate()
            await asyncio.to_thread(process.wait)
            await until(lambda: not served.app.state.gateway.bus.connected)
            began = asyncio.get_running_loop().time()
            answer = await client.post(EVENTS, json={"type": "Custom.Ping"}, headers=HEADERS)
            assert asyncio.get_running_loop().time() - began < 1
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["waiting_for"]) == (503, ["nats"])
            process = launch(server.command)
            await until(lambda: served.app.state.gateway.bus.connected)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def test_it_runs_as_a_process(nats_url: str, names: Names, tmp_path: Path) -> None:
    port = nats_server.free_port()
    environ = {
        "CRUCIBLE_NATS_URL": nats_url,
        "CRUCIBLE_BUS_PREFIX": names.prefix,
        "CRUCIBLE_PORT": str(port),
        "CRUCIBLE_ADMIN_KEY": KEY,
    }
    process = launch([sys.executable, "-m", "crucible_gateway"], environ, tmp_path)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.HTTPError:
                    return False

            await until(ready, within_s=20)
            stream = {"Accept": "text/event-stream"}
            async with client.stream("GET", f"{EVENTS}/stream", headers=stream) as answer:
                assert answer.status_code == 200
                process.terminate()
                # An open stream ends with the server, and does not hold it.
                assert await asyncio.to_thread(process.wait, 5) == 0
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
