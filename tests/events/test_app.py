import asyncio

import httpx
from starlette.applications import Starlette

from crucible_core.protocol.events import Appended

from .conftest import Asker, Running, new


async def fetch(app: Starlette, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://events") as client:
        return await client.get(path)


async def test_it_tells_when_it_is_ready(running: Running) -> None:
    async with running() as app:
        assert (await fetch(app, "/readyz")).json() == {"ready": True}


async def test_it_counts_what_it_does(service: Starlette, ask: Asker) -> None:
    await ask.append(new(id="evt_a"), new(id="evt_a"), new("Nope.Nothing"), new(hop=9))
    page = (await fetch(service, "/metrics")).text
    for line in (
        'crucible_events_appended_total{category="Custom"} 1.0',
        "crucible_events_duplicates_total 1.0",
        'crucible_events_refused_total{reason="invalid"} 1.0',
        'crucible_events_refused_total{reason="hops"} 1.0',
        "crucible_events_commit_events_count 2.0",
        "crucible_index_lag 0.0",
        "crucible_events_pre_hooks 0.0",
    ):
        assert line in page, page


async def test_what_was_accepted_is_there_when_it_stops_under_load(running: Running, ask: Asker) -> None:
    async with running():
        asked = [asyncio.create_task(ask.one(new())) for _ in range(300)]
        await asked[0]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    accepted = {outcome.id for outcome in outcomes if isinstance(outcome, Appended) and outcome.sequence}
    assert accepted
    async with running():
        found = await ask.found(limit=1000)
    assert accepted <= {event.metadata.id for event in found}
