"""Requests about worlds, rooms and retention, and about what the log has lost."""

from collections.abc import Sequence

import msgspec

from crucible_client.request import JSON, Call, Json, get, if_match, params_of, post, reads, segment
from crucible_client.response import read_as
from crucible_client.results import Page
from crucible_core.protocol.losses import Loss, LossList
from crucible_core.protocol.retention import RetentionRule, RetentionView
from crucible_core.protocol.worlds import RoomList, RoomView, WorldList, WorldView


def create_world(id: str, *, description: str = "") -> Call[WorldView]:
    """Makes a world; one that is there already stays as it is. Raises ConflictError where that has another
    description."""
    return post("/api/v1/worlds", {"id": id, "description": description}, reads(WorldView))


def list_worlds(*, page_size: int | None = None, cursor: str | None = None) -> Call[Page[WorldView]]:
    """All worlds with their rooms, in the order of their ids."""
    return get("/api/v1/worlds", _world_page, params=params_of(limit=page_size, cursor=cursor))


def get_world(id: str) -> Call[WorldView]:
    """One world. Raises NotFoundError."""
    return get(_world(id), reads(WorldView))


def delete_world(id: str, *, purge: bool = False) -> Call[None]:
    """Removes a world; its events can still be read, until they expire. With `purge` they are removed, for good."""
    params = (("purge", "true"),) if purge else ()
    return Call("DELETE", _world(id), lambda _raw: None, params=params)


def create_room(world: str, id: str) -> Call[RoomView]:
    """Makes a room in a world; one that is there already stays as it is. Raises NotFoundError."""
    return post(f"{_world(world)}/rooms", {"id": id}, reads(RoomView))


def list_rooms(world: str) -> Call[list[RoomView]]:
    """The rooms of a world. Raises NotFoundError."""
    return get(f"{_world(world)}/rooms", lambda raw: read_as(raw, RoomList).rooms)


def delete_room(world: str, id: str) -> Call[None]:
    """Removes a room; its events can still be read, until they expire."""
    return Call("DELETE", f"{_world(world)}/rooms/{segment(id)}", lambda _raw: None)


def get_retention() -> Call[RetentionView]:
    """The rules of retention; `revision` protects a change from another one."""
    return get("/api/v1/retention", reads(RetentionView))


def put_retention(
    rules: Sequence[RetentionRule | Json], *, expected_revision: int | None = None
) -> Call[RetentionView]:
    """Replaces the rules, for what is written from now on. A rule is `{"type": …, "keep": …, "world_id": …}`.

    Raises ConflictError when their revision is no longer `expected_revision`, InvalidError with the paths.
    """
    content = msgspec.json.encode({"rules": list(rules)})
    headers = {**JSON, **if_match(expected_revision)}
    path = "/api/v1/retention"
    return Call("PUT", path, reads(RetentionView), (), headers, content, repeatable=expected_revision is None)


def list_losses() -> Call[list[Loss]]:
    """Acknowledged events that the log has lost, and nobody has accepted as lost."""
    return get("/api/v1/losses", lambda raw: read_as(raw, LossList).losses)


def accept_losses() -> Call[list[Loss]]:
    """Takes them for given; what only the index has of them is not shown any more. Answers which were accepted."""
    return post("/api/v1/losses/accept", None, lambda raw: read_as(raw, LossList).losses)


def _world_page(raw: bytes) -> Page[WorldView]:
    found = read_as(raw, WorldList)
    return Page(found.worlds, found.next_cursor)


def _world(id: str) -> str:
    return f"/api/v1/worlds/{segment(id)}"
