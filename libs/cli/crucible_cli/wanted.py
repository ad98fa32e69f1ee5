"""The options that say which events of the log: the same for every command that reads it."""

import inspect
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from crucible_client.calls.events import Wanted

from .given import filter_of, moment_of
from .session import Session

_PANEL = "Which events"


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


Types = Annotated[list[str] | None, _option("--type", "-t", help="A type, alias or wildcard; repeat for more.")]
Filters = Annotated[
    list[str] | None,
    _option("--filter", "-f", help="key=value, key~regex, key>=3 …, or a filter as a JSON object, @FILE or - (stdin)."),
]
World = Annotated[str | None, _option("--world", help="The world.")]
Room = Annotated[str | None, _option("--room", help="The room.")]


class Asked(msgspec.Struct, frozen=True):
    """The events that are asked for, as the client takes them."""

    types: list[str]
    wanted: Wanted


def wanting(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `asked` is filled from the options of `_asked`."""
    options = inspect.signature(_asked).parameters

    def run(session: Session, **given: Any) -> None:
        asked = _asked(**{name: given.pop(name) for name in options})
        function(session, asked=asked, **given)

    own = [each for each in inspect.signature(function).parameters.values() if each.name != "asked"]
    parameters = [own[0], *own[1:], *options.values()]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return run


def _asked(
    type: Types = None,
    filter: Filters = None,
    actor: Annotated[str | None, _option("--actor", help="Who, such as user:alice.")] = None,
    source: Annotated[
        str | None, _option("--source", help="user, agent, system or external, or with an id: agent:alice.")
    ] = None,
    entity: Annotated[
        str | None, _option("--entity", help="What it is about, such as a memory's id or a path.")
    ] = None,
    correlation: Annotated[str | None, _option("--correlation", help="The correlation id.")] = None,
    causation: Annotated[str | None, _option("--causation", help="The id of the event that caused it.")] = None,
    world: World = None,
    room: Room = None,
    since: Annotated[str | None, _option("--since", help="From this time on: RFC 3339, or 10m, 2h, 3d ago.")] = None,
    until: Annotated[str | None, _option("--until", help="Up to this time: RFC 3339, or 10m, 2h, 3d ago.")] = None,
    after: Annotated[int | None, _option("--after", help="Only after this sequence.")] = None,
) -> Asked:
    now = time.time_ns() // 1000
    wanted = Wanted(
        actor=actor,
        source=source,
        entity=entity,
        correlation_id=correlation,
        causation_id=causation,
        world_id=world,
        room_id=room,
        from_time=moment_of(since, now),
        to_time=moment_of(until, now),
        after=after,
        filter=filter_of(filter, "--filter"),
    )
    return Asked(type or [], wanted)
