"""`crucible events`: read, follow, count, trace, redact and resend events; its other commands
are in `transfer`, `types` and `replays`."""

import contextlib
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Annotated

import typer
from rich.text import Text

from crucible_cli.commands import replays, types, webhooks
from crucible_cli.commands.transfer import emit, export, import_
from crucible_cli.display import clean
from crucible_cli.options import Filters, Room, Selection, Types, World, filter_of, time_of, with_selection
from crucible_cli.session import Session, Yes, command
from crucible_cli.tables import count_table, event_line, event_panel
from crucible_cli.tree import render_trace
from crucible_client import Crucible, Notice
from crucible_core.envelope import Event
from crucible_core.errors import ConflictError, NotFoundError
from crucible_core.ids import id_span
from crucible_core.limits import LOOKED_UP_EVENTS
from crucible_core.protocol.events import CountBy
from crucible_core.times import format_time

app = typer.Typer(no_args_is_help=True, help="Read, follow, append, count, move and replay events.")
app.add_typer(types.app, name="types")
Id = Annotated[str, typer.Argument(help="The event's id (evt_…), a beginning of it, or its sequence.")]
PAGE = 500
SLACK_MS = 1000
"""An id may be made a moment before or after its event's time."""
_LOOKED_AT = 50


@command(app, table=True)
@with_selection
def list_(
    session: Session,
    selection: Selection,
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
            *selection.types, order="desc" if backwards else "asc", page_size=page_size, **selection.fields
        )
        if not all:
            events = islice(events, limit)
        for event in reversed(list(events)) if backwards and desc is None else events:
            session.line(event, partial(event_line, wide=session.wide))
            found += 1
    if not found and not session.json:
        session.out.print(Text("No events match.", "dim"))


@command(app, table=True)
@with_selection
def count(
    session: Session,
    selection: Selection,
    by: Annotated[CountBy | None, typer.Option("--by", help="Also in groups; days are UTC's.")] = None,
) -> None:
    """The number of events, in all or in groups.

    \b
    crucible events count --by type
    crucible events count --type "Memory.*" --since 7d --by day
    """
    with session.connect() as crucible:
        session.show(crucible.events.count(*selection.types, by=by, **selection.fields), count_table)


@command(app, alias="show")
def get(session: Session, id: Id) -> None:
    """One event, whole."""
    with session.connect() as crucible:
        session.show(find_event(crucible, id), event_panel)


@command(app)
def redact(
    session: Session,
    id: Id,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why. It stays in the log: do not repeat what is erased.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Erase an event's payload for good; its envelope stays, and a tombstone says who did it.

    \b
    crucible events redact evt_01kaj3x5vae8jv6jq0f1d8c2hm --reason "asked for by the author"
    """
    with session.connect() as crucible:
        event = find_event(crucible, id)
        if not yes:
            session.err.print(event_line(event), soft_wrap=True)
            session.confirm("Erase its payload? Nobody can bring it back.", yes)
        session.show(crucible.events.redact(event.metadata.id, reason=reason), event_panel)


@command(app)
def trace(
    session: Session,
    id: Annotated[
        str, typer.Argument(help="A correlation id, or any event of the chain: its id, a beginning of it, or sequence.")
    ],
) -> None:
    """Everything that followed from one cause, as a tree with times."""
    with session.connect() as crucible:
        is_event = id.startswith("evt_") or id.lstrip("#").isdigit()
        correlation = find_event(crucible, id).metadata.correlation_id if is_event else id
        session.show(crucible.events.trace(correlation), render_trace)


def find_event(crucible: Crucible, text: str) -> Event:
    """The event with that id, the one whose id begins so, or the one with that sequence. Raises NotFoundError, and
    ConflictError where several ids begin so."""
    number = text.removeprefix("#")
    if number.isascii() and number.isdigit() and 0 < int(number) < 2**53:
        # Of a log in several streams, events of others may come first that were stored at about the same time.
        for event in islice(crucible.events.list(after=int(number) - 1, page_size=_LOOKED_AT), _LOOKED_AT):
            if event.sequence == int(number):
                return event
        raise NotFoundError(f"the log has no event with the sequence {number}")
    span = id_span(text)
    if span is None:
        return crucible.events.get(text)
    first, last = format_time((span[0] - SLACK_MS) * 1000), format_time((span[1] + SLACK_MS) * 1000)
    events = crucible.events.list(from_time=first, to_time=last, page_size=PAGE)
    matching = [event for event in islice(events, LOOKED_UP_EVENTS) if event.metadata.id.startswith(text)]
    if not matching:
        raise NotFoundError(f"no event has an id that begins with {text}")
    if len(matching) > 1:
        shown = ", ".join(event.metadata.id for event in matching[:3])
        raise ConflictError(f"{text} may be any of {len(matching)} events: {shown}{' …' if len(matching) > 3 else ''}")
    return matching[0]


@command(app, table=True)
def tail(
    session: Session,
    type: Types = None,
    filter: Filters = None,
    world: World = None,
    room: Room = None,
    from_: Annotated[
        str, typer.Option("--from", help="now, start, a sequence (exclusive), a time (RFC 3339), or 10m, 2h, 3d ago.")
    ] = "now",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after so many events.")] = None,
) -> None:
    """Print events as they are committed, until Ctrl-C. It reconnects by itself and misses none.

    \b
    crucible events tail
    crucible events tail --from 10m --type "Memory.*" --filter 'tags={"contains": "#x"}'
    crucible events tail --from start --json | jq .data.payload
    """
    reporter = StreamReporter(session)
    start = time_of(from_, time.time_ns() // 1000) or "now"
    condition = filter_of(filter, "--filter")
    with session.connect() as crucible, contextlib.suppress(KeyboardInterrupt):
        events = crucible.events.subscribe(
            *(type or ()),
            filter=condition,
            from_=start,
            world_id=world,
            room_id=room,
            patience_s=None,
            on_notice=reporter.report,
        )
        with contextlib.closing(events):
            for event in islice(events, limit):
                reporter.away = False
                session.line(event, partial(event_line, wide=session.wide))


class StreamReporter:
    """Says beside the events what happens to the stream; that it is away, once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.away = False

    def report(self, notice: Notice) -> None:
        match notice.kind:
            case "caught_up":
                self._session.note(f"— caught up at #{notice.sequence}: live from here —")
                self.away = False
            case "gap":
                self._session.note(f"— too slow for {notice.dropped} events: they are read from the log —")
            case "warned":
                self._session.note(f"— {notice.detail} —")
            case "away" if not self.away:
                self._session.note(f"— {notice.detail}: connecting again —")
                self.away = True


@command(app)
def resend(
    session: Session,
    id: Id,
    to: Annotated[str, typer.Option("--to", metavar="WEBHOOK", help="A webhook's name, id, or the beginning of it.")],
) -> None:
    """Send one event to one webhook once more, whatever its filters say.

    \b
    crucible events resend evt_01kaj3x5vae8jv6jq0f1d8c2hm --to ci
    """
    with session.connect() as crucible:
        webhook = webhooks.find_webhook(crucible, to)
        event = find_event(crucible, id)
        resent = crucible.events.resend(event.metadata.id, webhook.id)
    text = Text.assemble((resent.delivery_id, "bold"), f"  goes to {clean(webhook.name)}")
    session.show(resent, lambda _: text)


command(app)(emit)
command(app)(with_selection(export))
command(app)(import_)
command(app, "replay")(replays.start)
