"""`crucible events`: read, follow, append, count, move and replay events."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Annotated

import typer
from rich.text import Text

from crucible_core.envelope import Event
from crucible_core.protocol.events import CountBy

from . import replays, types
from .emitting import emit, export, import_
from .session import Session, command
from .tables import count_table, event_line, event_panel
from .tailing import tail
from .tree import render_trace
from .wanted import Asked, wanting

app = typer.Typer(no_args_is_help=True, help="Read, follow, append, count, move and replay events.")
app.add_typer(types.app, name="types")

PAGE = 500


@command(app, table=True)
@wanting
def list_(
    session: Session,
    asked: Asked,
    desc: Annotated[
        bool | None, typer.Option("--desc/--asc", help="The latest first, or from the earliest on.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    all: Annotated[bool, typer.Option("--all", help="As many as there are.")] = False,
) -> None:
    """The latest events, in the order of the log: by type, cause, place, time and filter; with --json one a line.

    \b
    crucible events list --type "Memory.*" --since 2h
    crucible events list --filter 'content~(?i)clock' --filter 'n>=3' --limit 100
    crucible events list --actor user:alice --asc --all --json
    """
    found = 0
    backwards = desc or (desc is None and not all)
    with session.connect() as crucible:
        page_size = PAGE if all else min(limit, PAGE)
        events: Iterable[Event] = crucible.events.list(
            *asked.types, order="desc" if backwards else "asc", page_size=page_size, **asked.wanted
        )
        if not all:
            events = islice(events, limit)
        for event in reversed(list(events)) if backwards and desc is None else events:
            session.line(event, partial(event_line, wide=session.wide))
            found += 1
    if not found and not session.json:
        session.out.print(Text("No events match.", "dim"))


@command(app, table=True)
@wanting
def count(
    session: Session,
    asked: Asked,
    by: Annotated[CountBy | None, typer.Option("--by", help="Also in groups; days are UTC's.")] = None,
) -> None:
    """How many events there are, in all or in groups.

    \b
    crucible events count --by type
    crucible events count --type "Memory.*" --since 7d --by day
    """
    with session.connect() as crucible:
        session.show(crucible.events.count(*asked.types, by=by, **asked.wanted), count_table)


@command(app)
def get(session: Session, id: Annotated[str, typer.Argument(help="The event's id (evt_…).")]) -> None:
    """One event, whole."""
    with session.connect() as crucible:
        session.show(crucible.events.get(id), event_panel)


@command(app)
def redact(
    session: Session,
    id: Annotated[str, typer.Argument(help="The event's id (evt_…).")],
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why. It stays in the log: do not repeat what is erased.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Erase an event's payload for good; its envelope stays, and a tombstone says who did it.

    \b
    crucible events redact evt_01kaj3x5vae8jv6jq0f1d8c2hm --reason "asked for by the author"
    """
    with session.connect() as crucible:
        if not yes:
            event = crucible.events.get(id)
            session.err.print(event_line(event), soft_wrap=True)
            typer.confirm("Erase its payload? Nobody can bring it back.", abort=True, err=True)
        session.show(crucible.events.redact(id, reason=reason), event_panel)


@command(app)
def trace(
    session: Session, id: Annotated[str, typer.Argument(help="A correlation id, or the id of any event of the chain.")]
) -> None:
    """Everything that followed from one cause, as a tree with times."""
    with session.connect() as crucible:
        correlation = crucible.events.get(id).metadata.correlation_id if id.startswith("evt_") else id
        session.show(crucible.events.trace(correlation), render_trace)


command(app, table=True)(tail)
command(app)(emit)
command(app)(wanting(export))
command(app)(import_)
command(app, "replay")(replays.start)
