"""Spans of requests, as OpenTelemetry's conventions for HTTP servers have them, at a collector of their own."""

import httpx

from crucible_core.errors import UnavailableError
from crucible_core.protocol.parts import GetRequest
from crucible_kit.nats.bus import Bus
from tests.collector import Collector, attributes_of

from .conftest import HEADERS, Serve, answering

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_requests_have_spans_by_convention(start: Serve, bus: Bus, collector: Collector) -> None:
    async with answering(bus, "memory", get=GetRequest) as memory, start() as gateway:
        memory.replies["get"] = UnavailableError("it is away")
        headers = HEADERS | {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "User-Agent": "me/1"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as client:
            assert (await client.get("/healthz?a=b")).status_code == 200
            assert (await client.get("/api/v1/memory/mem_1")).status_code == 503
            assert (await client.get("/api/v1/events?limit=0")).status_code == 422
            assert (await client.get("/api/v1/events", headers={"Authorization": "Bearer no"})).status_code == 401
    by_name = collector.spans()
    healthy, away = by_name["GET /healthz"], by_name["GET /api/v1/memory/{id}"]
    assert healthy.trace_id.hex() == TRACE
    assert healthy.kind == 2
    assert attributes_of(healthy) == {
        "http.request.method": "GET",
        "http.route": "/healthz",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/healthz",
        "url.query": "a=b",
        "server.address": "127.0.0.1",
        "server.port": int(gateway.url.rpartition(":")[2]),
        "client.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": attributes_of(healthy)["network.peer.port"],
        "network.protocol.version": "1.1",
        "user_agent.original": "me/1",
    }
    assert (healthy.status.code, away.status.code) == (0, 2)
    assert attributes_of(away)["error.type"] == "503"
    refused = [attributes_of(s)["http.response.status_code"] for s in collector.named("GET /api/v1/events")]
    assert refused == [422, 401]
    assert all(s.status.code == 0 for s in collector.named("GET /api/v1/events"))
