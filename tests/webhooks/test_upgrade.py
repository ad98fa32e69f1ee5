"""A data directory of the version before the work engine: what waits in it is delivered, and nothing twice."""

import asyncio

import msgspec

from crucible_core import subjects
from crucible_core.protocol.parts import TypeFilter
from crucible_core.protocol.webhooks import Auth, WebhookOptions, WebhookRecord
from crucible_kit.buckets import open_bucket
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.eventlog import event_at
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.consumer import ensure_durable, work
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings

from .conftest import Receiver, Service, Settings, until

ID = "whk_01kabcdefghjkmnpqrstvwxyz0"


async def test_what_waits_is_brought_over(
    bus: Bus, settings: Settings, receiver: Receiver, told: list[str], nats_url: str
) -> None:
    names, service = bus.names, Service(bus, settings)
    await bus.ensure_stream(
        names.deliveries,
        subjects=[f"{names.prefix}.dlv.*", f"{names.prefix}.sched.dlv.>"],
        retention="workqueue",
        allow_direct=True,
        allow_msg_ttl=True,
        allow_msg_schedules=True,
    )
    await declare_streams(bus, KitSettings(nats_url=nats_url, bus_prefix=names.prefix), "events")
    record = WebhookRecord(
        id=ID,
        name="old",
        url=receiver.url,
        event_filters=[TypeFilter("*")],
        auth=Auth(secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        options=WebhookOptions(),
        created_at=timestamp(),
        updated_at=timestamp(),
    )
    await (await open_bucket(bus, "webhooks")).put(ID, msgspec.json.encode(record))
    await ensure_durable(bus, names.deliveries, names.durable(ID), [f"{names.prefix}.dlv.{ID}"])
    for name in ("Waits", "Retried", "Done", "Missed"):
        await service.append(f"Custom.{name}")
    for sequence, attempt in ((1, 1), (2, 3)):
        event = await event_at(bus, sequence)
        assert event is not None
        headers = {
            "Crucible-Delivery": f"dlv_{sequence}",
            subjects.ATTEMPT: str(attempt),
            subjects.EVENT_SEQUENCE: str(sequence),
        }
        if attempt == 1:
            await bus.store(Outgoing(f"{names.prefix}.dlv.{ID}", event.data, headers, f"dlv_{sequence}"))
        else:
            subject, target = f"{names.prefix}.sched.dlv.{ID}.dlv_{sequence}", f"{names.prefix}.dlv.{ID}"
            await bus.schedule(subject, target, now_ms() + 1500, event.data, headers, f"dlv_{sequence}:3")
    await _dispatched_up_to(bus, 3)

    async with service.running():
        await until(lambda: len(receiver.requests) == 3)
        seen = {headers["x-crucible-event-type"]: headers["x-crucible-delivery"] for headers, _ in receiver.requests}
        assert set(seen) == {"Custom.Waits", "Custom.Retried", "Custom.Missed"}
        assert (seen["Custom.Waits"], seen["Custom.Retried"]) == ("dlv_1", "dlv_2")
        assert not any("whk_" in name or "dispatch" in name for name in await bus.consumer_names(names.deliveries))


async def _dispatched_up_to(bus: Bus, sequence: int) -> None:
    names = bus.names
    taken: list[int] = []

    async def take(message: Message) -> None:
        taken.append(message.sequence)
        if message.sequence > sequence:
            raise RuntimeError("not yet")

    durable, filters = names.durable("webhooks-dispatch"), [names.all_events]
    working = asyncio.create_task(work(bus, names.events, durable, take, filters=filters))
    await until(lambda: sequence in taken)
    await asyncio.sleep(0.2)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
