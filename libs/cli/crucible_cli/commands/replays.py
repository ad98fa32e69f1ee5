"""`crucible replays`: progress and steering of replays; and `crucible events replay`, which starts one."""

import contextlib
import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from crucible_cli.commands import hooks, webhooks
from crucible_cli.lookup import find_by_id
from crucible_cli.options import json_object, time_of
from crucible_cli.session import Session, Yes, command
from crucible_cli.tables import replay_view, replays_table, target_text
from crucible_client import Crucible
from crucible_core.protocol.replays import Replay

app = typer.Typer(no_args_is_help=True, help="Show, pause, resume and cancel replays.")

Id = Annotated[str, typer.Argument(help="The replay's id (rpl_…), or the beginning of it.")]
_LOOK_S = 0.2


def start(
    session: Session,
    to_hook: Annotated[
        str | None, typer.Option("--to-hook", help="The hook that they go to: its name, or the beginning of it.")
    ] = None,
    to_webhook: Annotated[
        str | None,
        typer.Option("--to-webhook", help="The webhook that they go to: name, id, or its beginning."),
    ] = None,
    from_: Annotated[
        str, typer.Option("--from", help="start, a sequence (exclusive), a time (RFC 3339), or 10m, 2h, 3d ago.")
    ] = "start",
    until: Annotated[
        str, typer.Option("--to", help="now, a sequence (inclusive), a time (RFC 3339), or 10m, 2h, 3d ago.")
    ] = "now",
    type: Annotated[
        list[str] | None, typer.Option("--type", "-t", help="A type, alias or wildcard; repeat for more.")
    ] = None,
    filter: Annotated[
        str | None, typer.Option("--filter", "-f", help="A filter on each of them: JSON, @FILE or -.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="At most so many events a second.")] = None,
    world: Annotated[str | None, typer.Option(help="Only this world.")] = None,
    room: Annotated[str | None, typer.Option(help="Only this room.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show a bar until it has ended; Ctrl-C leaves it going.")
    ] = False,
) -> None:
    """Replay events of the past into one hook or webhook. Exit code 1 when --wait sees it fail."""
    if (to_hook is None) == (to_webhook is None):
        raise typer.BadParameter("give one of --to-hook and --to-webhook")
    found = json_object(filter, "--filter") or {}
    filters: list[Any] = [{"event_type": kind, "filter": found} for kind in type or ["*"]]
    now = time.time_ns() // 1000
    with session.connect() as crucible:
        replay = crucible.events.replay(
            hook=hooks.find_hook(crucible, to_hook).name if to_hook else None,
            webhook=webhooks.find_webhook(crucible, to_webhook).id if to_webhook else None,
            start=time_of(from_, now) or from_,
            to=time_of(until, now) or until,
            filters=filters,
            rate=rate,
            world_id=world,
            room_id=room,
        )
        _show_replay(session, crucible, replay, wait)


@command(app, table=True)
def list_(session: Session) -> None:
    """All replays, the newest first."""
    with session.connect() as crucible:
        session.list("replays", crucible.replays.list(), replays_table)


@command(app, "get", alias="show")
def show(
    session: Session,
    id: Id,
    wait: Annotated[bool, typer.Option("--wait", help="Show a bar until it has ended.")] = False,
) -> None:
    """The progress of a replay."""
    with session.connect() as crucible:
        _show_replay(session, crucible, _find_replay(crucible, id), wait)


@command(app)
def pause(session: Session, id: Id) -> None:
    """Keep a replay from going on."""
    with session.connect() as crucible:
        session.show(crucible.replays.pause(_find_replay(crucible, id).id), replay_view)


@command(app)
def resume(session: Session, id: Id) -> None:
    """Let a replay that is paused, or has failed, go on."""
    with session.connect() as crucible:
        session.show(crucible.replays.resume(_find_replay(crucible, id).id), replay_view)


@command(app)
def cancel(session: Session, id: Id, yes: Yes = False) -> None:
    """End a replay for good; what its target's queue holds still goes out."""
    with session.connect() as crucible:
        replay = _find_replay(crucible, id)
        if not yes:
            session.err.print(replay_view(replay))
            session.confirm("End this replay? It cannot be resumed.", yes)
        session.show(crucible.replays.cancel(replay.id), replay_view)


def _find_replay(crucible: Crucible, id: str) -> Replay:
    return find_by_id(id, "rpl", crucible.replays.get, lambda _: crucible.replays.list())


def _show_replay(session: Session, crucible: Crucible, replay: Replay, wait: bool) -> None:
    if wait:
        with contextlib.suppress(KeyboardInterrupt):
            replay = _follow(session, crucible, replay)
    session.show(replay, replay_view)
    if wait and replay.state.startswith("failed"):
        raise typer.Exit(1)


def _follow(session: Session, crucible: Crucible, replay: Replay) -> Replay:
    """The replay once it no longer runs; a bar shows its way there."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=session.err, transient=True) as progress:
        bar = progress.add_task(f"into {target_text(replay.target)}", total=max(replay.total, 1))
        while replay.state == "running":
            progress.update(bar, completed=replay.progress * max(replay.total, 1))
            time.sleep(_LOOK_S)
            replay = crucible.replays.get(replay.id)
    return replay
