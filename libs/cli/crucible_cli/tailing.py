"""`crucible events tail`: the log as it grows."""

import contextlib
import time
from functools import partial
from itertools import islice
from typing import Annotated

import typer

from crucible_client import Notice

from .given import filter_of, moment_of
from .session import Session
from .tables import event_line
from .wanted import Filters, Room, Types, World


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
    teller = Teller(session)
    start = moment_of(from_, time.time_ns() // 1000) or "now"
    wanted = filter_of(filter, "--filter")
    with session.connect() as crucible, contextlib.suppress(KeyboardInterrupt):
        events = crucible.events.subscribe(
            *(type or ()),
            filter=wanted,
            from_=start,
            world_id=world,
            room_id=room,
            patience_s=None,
            on_notice=teller.tell,
        )
        with contextlib.closing(events):
            for event in islice(events, limit):
                teller.away = False
                session.line(event, partial(event_line, wide=session.wide))


class Teller:
    """Says beside the events what happens to the stream; that it is away, once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.away = False

    def tell(self, notice: Notice) -> None:
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
