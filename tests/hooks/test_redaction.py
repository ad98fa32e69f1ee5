"""Redacted events: what waits for its run is not run, and does not stay in the queue."""

from crucible_core.access import OPERATOR
from crucible_core.catalogue import CATALOGUE
from crucible_core.envelope import decode
from crucible_core.protocol.events import RedactRequest
from crucible_hooks.dispatch import run_message
from crucible_hooks.hook import load_hook
from crucible_kit.rpc import call
from tests.tombstones import queued

from .conftest import System, until

SECRET = "vermilion"


async def redact(system: System, event_id: str | None) -> None:
    await call(system.bus, OPERATOR, "events", "redact", RedactRequest(id=event_id or ""), bytes)


async def test_what_is_parked_is_dropped_and_recorded(system: System) -> None:
    retry = {"max_attempts": 3, "backoff": "fixed", "delay_ms": 60_000}
    await system.register("failing", "1 / 0", options={"retry": retry})
    secret = await system.append(payload={"text": SECRET})
    plain = await system.append(payload={"text": "plain"})

    async def parked() -> int:
        return await queued(system.bus, system.bus.names.hook_runs, SECRET)

    async def is_parked() -> bool:
        return len(await system.runs("failing")) == 2 and await parked() == 1

    await until(is_parked)
    await redact(system, secret.id)

    async def gone() -> bool:
        return await parked() == 0

    await until(gone)
    assert await queued(system.bus, system.bus.names.hook_runs, "plain") == 1
    run = await system.run_of("failing", "skipped")
    assert (run.event_id, run.attempt, run.error) == (secret.id, 2, "not run: the event was redacted before")
    assert {run.event_id for run in await system.runs("failing")} == {secret.id, plain.id}


async def test_what_comes_into_the_queue_late_is_not_run(system: System) -> None:
    view = await system.register("greeter", '"hello"', on="Custom.other")
    hook = load_hook(view.definition or {}, None, view.id, catalogue=CATALOGUE)
    secret = await system.append(payload={"text": SECRET})
    message = await system.bus.get(system.bus.names.events, secret.sequence or 0)
    assert message is not None
    await redact(system, secret.id)
    event = decode(message.data, message.sequence)
    await system.bus.store(run_message(system.bus, hook, event, message))
    assert (await system.run_of("greeter", "skipped")).event_id == secret.id
    assert await queued(system.bus, system.bus.names.hook_runs, SECRET) == 0
    assert (await system.view("greeter")).counters.invoked == 0
