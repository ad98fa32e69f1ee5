"""What a hook sees of an event: the value of `event` in expressions, templates and scripts, and what it is sent."""

from typing import Any

import msgspec

from crucible_core.envelope import Event


def event_view(event: Event) -> dict[str, Any]:
    """The public form, with `payload` and `id` at the top as well."""
    view: dict[str, Any] = msgspec.to_builtins(event)
    return {**view, "id": event.metadata.id, "payload": view["data"]["payload"]}


def event_bytes(event: Event) -> bytes:
    """The public form as JSON: the body of an HTTP action, a Shell command's standard input."""
    return msgspec.json.encode(event)
