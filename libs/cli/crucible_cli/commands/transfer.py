"""`crucible events emit`, `export` and `import`: events into the log, one or many, and out of it."""

import time
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from crucible_cli.ndjson import open_output
from crucible_cli.options import Selection, fields_of
from crucible_cli.progress import EVENTS, progress
from crucible_cli.session import Session
from crucible_cli.upload import UploadResult, upload_atomically, upload_file, upload_view
from crucible_core.protocol.events import Appended


class ExportResult(msgspec.Struct, frozen=True):
    file: str
    events: int
    bytes: int
    seconds: float


def emit(
    session: Session,
    type: Annotated[
        str | None, typer.Argument(help="The type or an alias, such as Memory.Created; - reads NDJSON from stdin.")
    ] = None,
    payload: Annotated[list[str] | None, typer.Argument(help="key=value …, a JSON object, @FILE or - (stdin).")] = None,
    payload_option: Annotated[str | None, typer.Option("--payload", help="The same as one option.")] = None,
    file: Annotated[str | None, typer.Option("--file", help="A file of events, one a line; - is stdin.")] = None,
    atomic: Annotated[bool, typer.Option("--atomic", help="All events of the file or none (at most 1,000).")] = False,
    stop: Annotated[bool, typer.Option("--stop-on-error", help="End after the first refusal of the file.")] = False,
    entity: Annotated[str | None, typer.Option(help="The entity that it is about.")] = None,
    world: Annotated[str | None, typer.Option(help="The world.")] = None,
    room: Annotated[str | None, typer.Option(help="The room.")] = None,
    id: Annotated[str | None, typer.Option(help="The event's id; the same id again appends nothing.")] = None,
    correlation: Annotated[str | None, typer.Option(help="The correlation id to join.")] = None,
    causation: Annotated[str | None, typer.Option(help="The id of the event that caused it.")] = None,
    expected: Annotated[int | None, typer.Option(help="The sequence of the entity's last event; 0: none yet.")] = None,
    forever: Annotated[bool, typer.Option("--forever", help="Keep it past the retention.")] = False,
) -> None:
    """Append one event, or many from NDJSON; answered once they are durable.

    \b
    crucible events emit Custom.Built branch=main took=12.5
    crucible events emit Memory.Created '{"content": "Clocks tick"}'
    crucible events emit --file events.ndjson
    generate | crucible events emit -
    """
    if type in (None, "-") or file is not None:
        if type not in (None, "-") or payload or payload_option:
            raise typer.BadParameter("give a TYPE, or the events of a file, not both")
        if type is None and file is None:
            raise typer.BadParameter("give a TYPE, or - for NDJSON from stdin, or --file")
        _emit_file(session, file or "-", atomic, stop)
        return
    assert type is not None
    given = [*(payload or ()), *([payload_option] if payload_option is not None else ())]
    with session.connect() as crucible:
        appended = crucible.events.append(
            type,
            fields_of(given, "PAYLOAD"),
            entity=entity,
            world_id=world,
            room_id=room,
            id=id,
            correlation_id=correlation,
            causation_id=causation,
            expected_sequence=expected,
            retention="forever" if forever else None,
        )
    session.show(appended, _append_view)


def export(
    session: Session,
    selection: Selection,
    file: Annotated[str, typer.Argument(help="Where to; - is stdout.")] = "-",
) -> None:
    """Write the log, or a part of it, as NDJSON: what `crucible events import` reads.

    \b
    crucible events export backup.ndjson
    crucible events export --type "Memory.*" --since 30d | gzip > memories.ndjson.gz
    """
    began = time.monotonic()
    size = 0
    with session.connect() as crucible:
        known = selection.fields.get("filter") is None and session.err.is_terminal
        total = crucible.events.count(*selection.types, **selection.fields).count if known else None
        with open_output(file) as out, progress(session.err, "exporting", total, EVENTS) as bar:
            for line in crucible.events.export(*selection.types, **selection.fields):
                size += out.write(line + b"\n")
                bar.advance(len(line))
            out.write(b"\n")  # as in the export itself: it is complete
        if not selection.types and any(kind.registered for kind in crucible.events.types()):
            session.note("The types that you registered are not in it: crucible events types export types.json")
    if file == "-":
        session.note(f"{bar.events:,} events")
    else:
        session.show(ExportResult(file, bar.events, size, round(time.monotonic() - began, 3)), _export_view)


def import_(
    session: Session,
    file: Annotated[str, typer.Argument(help="A file that `export` wrote, or any NDJSON of events; - is stdin.")],
    react: Annotated[
        bool, typer.Option("--react/--no-react", help="Let Post hooks, webhooks and the reader of notes react.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop-on-error", help="End after the first refusal.")] = False,
    skip: Annotated[
        bool, typer.Option("--skip-unknown", help="Pass over events whose types are not registered here.")
    ] = False,
) -> None:
    """Put exported events back: the same ids, times, order and causes; what is there already stays as it is.

    Types that were registered must be registered here first (`crucible events types export`, `add`). Worlds and rooms
    that are missing are made. A broken import is started again with the same file: it goes on where it was.

    \b
    crucible events import backup.ndjson
    gunzip -c memories.ndjson.gz | crucible events import -
    """
    result = upload_file(
        session, file, "importing", react=react, stop_on_error=stop, make_places=True, check_types=not skip
    )
    _end(session, result)


def _emit_file(session: Session, file: str, atomic: bool, stop: bool) -> None:
    _end(
        session,
        upload_atomically(session, file) if atomic else upload_file(session, file, "sending", stop_on_error=stop),
    )


def _end(session: Session, result: UploadResult) -> None:
    session.show(result, upload_view)
    if result.refused:
        raise typer.Exit(1)


def _export_view(exported: ExportResult) -> Text:
    size = f"  {exported.bytes / 1e6:,.1f} MB  → {exported.file}"
    text = Text.assemble((f"{exported.events:,} events", "bold"), size)
    return text.append(f"\nPut them back: crucible events import {exported.file}", "dim")


def _append_view(appended: Appended) -> Text:
    known = "  (known already)" if appended.duplicate else ""
    text = Text.assemble((f"#{appended.sequence}", "bold"), f"  {appended.type}  {appended.id}{known}")
    return text.append(f"\nSee what follows: crucible events trace {appended.correlation_id}", "dim")
