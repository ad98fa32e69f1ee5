"""What a generated client in Python does: python client.py URL KEY."""

import json
import sys

from crucible_api import AuthenticatedClient
from crucible_api.api.events import append_batch, append_event, query_events
from crucible_api.api.memory import create_memory, get_memory, query_memory
from crucible_api.api.webhooks import create_webhook, list_webhooks
from crucible_api.models import (
    CreateWebhook,
    MemoryQuery,
    Reference,
    SentEvent,
    SentEventPayload,
    SentMemory,
    TypeFilter,
)

url, key = sys.argv[1:]
with AuthenticatedClient(url, key, raise_on_unexpected_status=True) as client:
    event = SentEvent("Custom.Python", payload=SentEventPayload.from_dict({"n": 1}))
    appended = append_event.sync(client=client, body=event)
    batch = append_batch.sync(client=client, body=[event, event])
    last = batch.results[1].sequence
    page = query_events.sync(client=client, type_=["Custom.Python"], min_sequence=last)
    sent = SentMemory("The Python client remembers", tags=["#python"], links=["mem_other", Reference("On logs")])
    written = create_memory.sync(client=client, body=sent, idempotency_key="python")
    view = get_memory.sync(written.id, client=client)
    query = MemoryQuery(text="remembers", tags=["#python"], min_sequence=written.sequence)
    found = query_memory.sync(client=client, body=query)
    hook = CreateWebhook("python", "http://127.0.0.1:9/", [TypeFilter("Custom.Python")])
    webhook = create_webhook.sync(client=client, body=hook)
    webhooks = list_webhooks.sync(client=client)
    refused = append_event.sync_detailed(client=client, body=SentEvent("Memory.Creatd"))
print(
    json.dumps(
        {
            "appended": [appended.id, appended.type_],
            "committed": batch.committed,
            "listed": [each.data.payload["n"] for each in page.events],
            "first": [page.events[0].metadata.id, page.events[0].metadata.timestamp.year],
            "links": [link.target for link in view.links],
            "found": [each.content for each in found.memories],
            "webhook": [webhook.name, webhook.id in [each.id for each in webhooks.webhooks]],
            "refused": [refused.parsed.status, refused.parsed.errors[0].suggestion],
        }
    )
)
