"""Redacted events: what waits for its run is not run, and does not stay in the queue."""

from crucible_core.access import OPERATOR
from crucible_core.protocol.events import RedactRequest
from crucible_core.subjects import RUN
from crucible_kit.handlers.pointers import pointer
from crucible_kit.rpc import call
from tests.tombstones import queued

from .conftest import System, until

SECRET = "vermilion"


async def redact(system: System, event_id: str | None) -> None:
    await call(system.bus, OPERATOR, "events", "redact", RedactRequest(id=event_id or ""), bytes)


async def test_what_is_parked_is_dropped_and_recorded(system: System) -> None:
    retry = {"max_attempts": 3, "backoff": "fixed", "delay_ms": 3000}
    await system.register("failing", "1 / 0", options={"retry": retry})
    secret = await system.append(payload={"text": SECRET})
    plain = await system.append(payload={"text": "plain"})

    async def parked() -> bool:
        return [run.outcome for run in await system.runs("failing")] == ["retrying"] * 2

    await until(parked)
    assert await queued(system.bus, system.bus.names.hook_runs, SECRET) == 0  # it points at its event
    await redact(system, secret.id)
    run = await system.run_of("failing", "skipped")
    assert (run.event_id, run.attempt, run.error) == (secret.id, 2, "not run: the event was redacted before")
    assert {run.event_id for run in await system.runs("failing")} == {secret.id, plain.id}


async def test_what_comes_into_the_queue_late_is_not_run(system: System) -> None:
    view = await system.register("greeter", '"hello"', on="Custom.other")
    secret = await system.append(payload={"text": SECRET})
    await redact(system, secret.id)
    await system.bus.store(pointer(system.bus.names, RUN, view.id, "run_late", secret.sequence or 0))
    assert (await system.run_of("greeter", "skipped")).event_id == secret.id
    assert (await system.view("greeter")).counters.invoked == 0
