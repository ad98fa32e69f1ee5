"""`crucible events`: read, follow, append and replay events."""

import contextlib
from itertools import islice
from typing import Annotated, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from crucible_core.envelope import Event
from crucible_core.protocol.events import Appended

from . import replays
from .given import json_object, payload_of
from .session import Session, command
from .tables import event_line, event_panel
from .tree import render_trace

app = typer.Typer(no_args_is_help=True, help="Read, follow, append and replay events.")

Types = Annotated[list[str] | None, typer.Option("--type", "-t", help="A type, alias or wildcard; repeat for more.")]
Filter = Annotated[str | None, typer.Option("--filter", "-f", help="A filter as a JSON object, @FILE or - (stdin).")]
PAGE = 500


@command(app)
def tail(
    session: Session,
    type: Types = None,
    filter: Filter = None,
    from_: Annotated[
        str, typer.Option("--from", help="now, start, a sequence (exclusive) or a time (RFC 3339).")
    ] = "now",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after so many events.")] = None,
) -> None:
    """Print events as they are committed, until Ctrl-C. It reconnects by itself and misses none."""
    asked = json_object(filter, "--filter")
    with session.connect() as crucible, contextlib.suppress(KeyboardInterrupt):
        for event in islice(crucible.events.stream(*(type or ()), filter=asked, start=from_), limit):
            session.line(event, event_line)


@command(app)
def list_(
    session: Session,
    type: Types = None,
    filter: Filter = None,
    actor: Annotated[str | None, typer.Option(help="Who, such as user:alice.")] = None,
    entity: Annotated[str | None, typer.Option(help="What it is about, such as a memory's id or a path.")] = None,
    correlation: Annotated[str | None, typer.Option(help="The correlation id.")] = None,
    world: Annotated[str | None, typer.Option(help="The world.")] = None,
    room: Annotated[str | None, typer.Option(help="The room.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on (RFC 3339).")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this time (RFC 3339).")] = None,
    after: Annotated[int | None, typer.Option(help="Only after this sequence.")] = None,
    order: Annotated[Literal["asc", "desc"], typer.Option(help="desc: the latest first.")] = "desc",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    """Events of the past, by type, cause, place, time and filter."""
    with session.connect() as crucible:
        found = crucible.events.list(
            *(type or ()),
            filter=json_object(filter, "--filter"),
            actor=actor,
            entity=entity,
            correlation_id=correlation,
            world_id=world,
            room_id=room,
            from_time=since,
            to_time=until,
            after=after,
            order=order,
            page_size=min(limit, PAGE),
        )
        session.show(list(islice(found, limit)), _lines)


@command(app)
def get(session: Session, id: Annotated[str, typer.Argument(help="The event's id (evt_…).")]) -> None:
    """One event, whole."""
    with session.connect() as crucible:
        session.show(crucible.events.get(id), event_panel)


@command(app)
def emit(
    session: Session,
    type: Annotated[str, typer.Argument(help="The type or an alias, such as Memory.Created or Custom.Built.")],
    payload: Annotated[str, typer.Argument(help="A JSON object, @FILE or - (stdin).")] = "{}",
    entity: Annotated[str | None, typer.Option(help="What it is about.")] = None,
    world: Annotated[str | None, typer.Option(help="The world.")] = None,
    room: Annotated[str | None, typer.Option(help="The room.")] = None,
    id: Annotated[str | None, typer.Option(help="The event's id; the same id again appends nothing.")] = None,
    correlation: Annotated[str | None, typer.Option(help="The correlation id to join.")] = None,
    causation: Annotated[str | None, typer.Option(help="The id of the event that caused it.")] = None,
    expected: Annotated[int | None, typer.Option(help="The sequence of the entity's last event; 0: none yet.")] = None,
    forever: Annotated[bool, typer.Option("--forever", help="Keep it past the retention.")] = False,
) -> None:
    """Append one event; answered once it is durable."""
    with session.connect() as crucible:
        appended = crucible.events.append(
            type,
            payload_of(payload, "PAYLOAD"),
            entity=entity,
            world_id=world,
            room_id=room,
            id=id,
            correlation_id=correlation,
            causation_id=causation,
            expected_sequence=expected,
            retention="forever" if forever else None,
        )
    session.show(appended, _appended)


@command(app)
def trace(
    session: Session, id: Annotated[str, typer.Argument(help="A correlation id, or the id of any event of the chain.")]
) -> None:
    """Everything that followed from one cause, as a tree with times."""
    with session.connect() as crucible:
        correlation = crucible.events.get(id).metadata.correlation_id if id.startswith("evt_") else id
        session.show(crucible.events.trace(correlation), render_trace)


command(app, "replay")(replays.start)


def _lines(events: list[Event]) -> RenderableType:
    return Group(*map(event_line, events)) if events else Text("No events match.", "dim")


def _appended(appended: Appended) -> Text:
    known = "  (known already)" if appended.duplicate else ""
    text = Text.assemble((f"#{appended.sequence}", "bold"), f"  {appended.type}  {appended.id}{known}")
    return text.append(f"\nSee what follows: crucible events trace {appended.correlation_id}", "dim")
