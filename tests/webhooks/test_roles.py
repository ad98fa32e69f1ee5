"""The two roles apart: one process answers, another one delivers."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.webhooks import EnableWebhook, WebhookView

from .conftest import Bus, Receiver, Service, Settings, until

MANY = 20


@pytest.fixture
async def apart(bus: Bus, settings: Settings, told: list[str], tmp_path: Path) -> AsyncIterator[Service]:
    def role(name: str) -> Service:
        return Service(bus, msgspec.structs.replace(settings, webhooks_role=name, data_dir=str(tmp_path / name)))

    answering = role("dispatch")
    async with role("deliver").running(), answering.running():
        yield answering


async def test_what_waits_in_the_log_is_counted_by_whoever_answers(apart: Service, receiver: Receiver) -> None:
    webhook = await apart.create(receiver.url, event_filters=[{"event_type": "Custom.Ping"}])
    await apart.ask("enable", EnableWebhook(id=webhook.id, enabled=False), WebhookView)
    for _ in range(3):
        await apart.append()

    async def counted() -> bool:
        return (await apart.ask("get", GetRequest(id=webhook.id), WebhookView)).waiting == 3

    await until(counted)
    await apart.ask("enable", EnableWebhook(id=webhook.id, enabled=True), WebhookView)
    await until(lambda: len(receiver.requests) == 3)


async def test_the_first_event_after_the_answer_is_delivered(apart: Service, receiver: Receiver) -> None:
    for n in range(MANY):
        await apart.create(receiver.url, event_filters=[{"event_type": f"Custom.Ping{n}"}])
        await apart.append(f"Custom.Ping{n}")
    await until(lambda: len(receiver.requests) == MANY)
