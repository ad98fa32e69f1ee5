"""Requests about replays."""

from collections.abc import Sequence

from crucible_client.request import Call, Json, get, keyed, post, present, reads, segment
from crucible_client.response import read_as
from crucible_core.protocol.replays import Replay, ReplayList


def start_replay(
    *,
    hook: str | None = None,
    webhook: str | None = None,
    subscription: str | None = None,
    start: int | str = 0,
    to: int | str = "now",
    filters: Sequence[Json | str] | None = None,
    rate: float | None = None,
    world_id: str | None = None,
    room_id: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Replay]:
    """Replays events of the past into one target: a hook by name, a webhook by id or name, or a live subscription.

    `start` (exclusive) and `to` (inclusive) are sequences or times (RFC 3339); also `start` and `now`. An entry of
    `filters` is a type or `{"event_type": …, "filter": {…}}`; without any, every event goes. `rate` is in events a
    second. It goes on by itself: `replays.get` tells how far it has come. Raises NotFoundError, InvalidError.
    """
    target = present(hook=hook, webhook=webhook, subscription=subscription)
    wanted = [{"event_type": entry} if isinstance(entry, str) else entry for entry in filters or ()] or None
    body = present(target=target, to=to, filters=wanted, rate=rate, world_id=world_id, room_id=room_id)
    body["from"] = start
    return post("/api/v1/events/replay", body, reads(Replay), headers=keyed(idempotency_key))


def list_replays() -> Call[list[Replay]]:
    """All replays, the newest first."""
    return get("/api/v1/replays", lambda raw: read_as(raw, ReplayList).replays)


def get_replay(id: str) -> Call[Replay]:
    """One replay, with its progress. Raises NotFoundError."""
    return get(_replay(id), reads(Replay))


def pause_replay(id: str) -> Call[Replay]:
    """Keeps a replay from going on. Raises ConflictError where it has ended."""
    return post(f"{_replay(id)}/pause", None, reads(Replay))


def resume_replay(id: str) -> Call[Replay]:
    """Lets a replay that is paused, or has failed, go on. Raises ConflictError where it has ended."""
    return post(f"{_replay(id)}/resume", None, reads(Replay))


def cancel_replay(id: str) -> Call[Replay]:
    """Ends a replay. Raises ConflictError where it is done."""
    return post(f"{_replay(id)}/cancel", None, reads(Replay))


def _replay(id: str) -> str:
    return f"/api/v1/replays/{segment(id)}"
