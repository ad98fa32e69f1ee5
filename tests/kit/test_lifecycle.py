"""What a service tells of itself, on a real bus with somebody at the place of `events`."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec

from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent
from crucible_core.types.catalogue import CATALOGUE
from crucible_kit.lifecycle import announce_lifecycle
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, serve
from crucible_kit.telemetry.spans import Telemetry
from tests.kit.outage import until

log = logging.getLogger("crucible_kit.test")
PROCESS = SimpleNamespace(state=SimpleNamespace(is_process=True))


@contextlib.asynccontextmanager
async def log_of(bus: Bus) -> AsyncIterator[list[NewEvent]]:
    told: list[NewEvent] = []

    async def append(request: AppendRequest, context: Context) -> AppendReply:
        told.extend(request.events)
        return AppendReply(results=[Appended(id=event.id) for event in request.events])

    async with serve(bus, "events", {"append": Endpoint(AppendRequest, append)}, Telemetry()):
        yield told


def payload(event: NewEvent) -> dict[str, Any]:
    CATALOGUE.validate(event.type, bytes(event.payload))
    found: dict[str, Any] = msgspec.json.decode(event.payload)
    return found


def fails(text: str) -> None:
    try:
        raise ValueError("what somebody sent")
    except ValueError:
        log.exception("a part of %s failed", text)


async def test_start_errors_and_end_are_told(bus: Bus) -> None:
    async with log_of(bus) as told:
        change = {"setting": "keys", "id": "key_1", "changes": {"made": "admin"}}
        async with announce_lifecycle(PROCESS, bus, "hooks", change):
            await until(lambda: len(told) == 2)
            for _ in range(3):
                fails("it")
            logging.getLogger("elsewhere").error("not ours")
            log.warning("no error")
            await until(lambda: len(told) == 3)
        assert [event.type for event in told] == [
            "System.Started",
            "System.ConfigChanged",
            "System.Error",
            "System.Shutdown",
        ]
    started, changed, error, end = told
    assert payload(started) == {"service": "hooks", "instance": payload(end)["instance"], "version": "0.1.0"}
    assert payload(changed)["id"] == "key_1"
    assert (payload(error)["message"], payload(error)["error"]) == ("a part of it failed", "ValueError")
    assert "somebody" not in error.payload.__repr__() + bytes(error.payload).decode()
    assert {event.correlation_id for event in told} == {started.correlation_id}
    assert {event.causation_id for event in told[1:]} == {started.id}


async def test_start_is_told_once_events_is_there(bus: Bus) -> None:
    async with announce_lifecycle(PROCESS, bus, "hooks"):
        await asyncio.sleep(0.2)  # the first try finds nobody
        async with log_of(bus) as told:
            await until(lambda: bool(told))
            assert [event.type for event in told] == ["System.Started"]


async def test_app_inside_another_process_says_nothing(bus: Bus) -> None:
    async with log_of(bus) as told, announce_lifecycle(SimpleNamespace(state=SimpleNamespace()), bus, "hooks"):
        fails("it")
    assert told == []
