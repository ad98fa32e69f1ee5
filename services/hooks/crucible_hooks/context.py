"""What a hook sees of an event: the value of `event` in expressions, templates and scripts, and what it is sent."""

from typing import Any

import msgspec

from crucible_core.envelope import Event


def event_view(event: Event, replay: bool = False) -> dict[str, Any]:
    """The public form, with `payload` and `id` at the top as well, and whether it is replayed."""
    view: dict[str, Any] = msgspec.to_builtins(event)
    return {**view, "id": event.metadata.id, "payload": view["data"]["payload"], "replay": replay}


def event_bytes(event: Event, replay: bool = False) -> bytes:
    """The public form as JSON, with `"replay": true` in a replayed one: the body of an HTTP action, a Shell command's
    standard input."""
    encoded = msgspec.json.encode(event)
    return b'%b,"replay":true}' % encoded[:-1] if replay else encoded
