"""`crucible memory`: keep, find, change and remove memories."""

from typing import Annotated, Any

import typer
from rich.text import Text

from crucible_cli.display import clean, headline
from crucible_cli.lookup import find_by_id
from crucible_cli.options import json_object, text_of
from crucible_cli.session import Session, Yes, command
from crucible_cli.tables import memories_table, memory_panel
from crucible_client import Crucible, Written
from crucible_core.protocol.memory import MemoryStatus, MemoryView, ScoredMemory

app = typer.Typer(no_args_is_help=True, help="Keep, find, change and remove memories.")

_SHOWN = 5

Id = Annotated[str, typer.Argument(help="The memory's id (mem_…), or the beginning of it.")]
Content = Annotated[str, typer.Argument(help="The text, @FILE or - (stdin).")]
Links = Annotated[list[str] | None, typer.Option("--link", help="A memory's id or a note's title; repeat.")]
Filter = Annotated[str | None, typer.Option("--filter", "-f", help="A filter as a JSON object or @FILE.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
OnlyTags = Annotated[list[str] | None, typer.Option("--tag", "-t", help="Only with this tag; repeat for more.")]
World = Annotated[str | None, typer.Option(help="The world to look in.")]
Room = Annotated[str | None, typer.Option(help="Only in this room.")]


@command(app, alias="add")
def create(
    session: Session,
    content: Content,
    tag: Annotated[list[str] | None, typer.Option("--tag", "-t", help="A tag; repeat for more.")] = None,
    link: Links = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object, @FILE or -.")] = None,
    world: Annotated[str | None, typer.Option(help="The world to keep it in.")] = None,
    room: Annotated[str | None, typer.Option(help="The room to keep it in.")] = None,
) -> None:
    """Keep a memory; answered once it is durable."""
    made = json_object(metadata, "--metadata")
    text = text_of(content, "CONTENT")
    with session.connect() as crucible:
        written = crucible.memory.create(
            text, tags=tag, links=_links(link), metadata=made, world_id=world, room_id=room
        )
    session.show(written, _written_view)


@command(app, alias="show")
def get(session: Session, id: Id) -> None:
    """One memory, whole."""
    with session.connect() as crucible:
        session.show(_find_memory(crucible, id), memory_panel)


@command(app, table=True)
def list_(
    session: Session,
    tag: OnlyTags = None,
    filter: Filter = None,
    limit: Limit = 10,
    world: World = None,
    room: Room = None,
) -> None:
    """The latest memories, the newest first."""
    query(session, None, tag, filter, limit, world, room)


@command(app, table=True)
def query(
    session: Session,
    text: Annotated[str | None, typer.Argument(help="Words to look for; none: the latest.")] = None,
    tag: OnlyTags = None,
    filter: Filter = None,
    limit: Limit = 10,
    world: World = None,
    room: Room = None,
) -> None:
    """The best matches, the best first."""
    condition = json_object(filter, "--filter")
    with session.connect() as crucible:
        found = crucible.memory.query(text, tags=tag, filter=condition, limit=limit, world_id=world, room_id=room)
    session.list("memories", found, memories_table)


@command(app)
def update(
    session: Session,
    id: Id,
    content: Annotated[str | None, typer.Argument(help="The new text, @FILE or - (stdin).")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", help="Its tags from now on; repeat. '' for none.")
    ] = None,
    link: Annotated[
        list[str] | None, typer.Option("--link", help="Its links from now on: ids or titles; repeat. '' for none.")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help="A JSON object, @FILE or -, merged into its own; null removes a key.")
    ] = None,
    sequence: Annotated[
        int | None, typer.Option("--sequence", min=0, help="Only if this is still its last sequence.")
    ] = None,
) -> None:
    """Change a memory; what is not given stays as it is."""
    fields: dict[str, Any] = {
        "content": None if content is None else text_of(content, "CONTENT"),
        "tags": None if tag is None else [each for each in tag if each],
        "links": None if link is None else _links([each for each in link if each]),
        "metadata": json_object(metadata, "--metadata"),
    }
    if all(value is None for value in fields.values()):
        raise typer.BadParameter("give what is to change: CONTENT, --tag, --link or --metadata")
    with session.connect() as crucible:
        written = crucible.memory.update(_find_memory(crucible, id).id, **fields, expected_sequence=sequence)
    session.show(written, _written_view)


@command(app, alias="rm")
def delete(session: Session, id: Id, yes: Yes = False) -> None:
    """Remove a memory: it is found no more. What its events say stays in the log."""
    with session.connect() as crucible:
        memory = _find_memory(crucible, id)
        if not yes:
            what = clean(memory.title or headline(memory.content), 60)
            session.confirm(f"Remove {memory.id} ({what})?", yes)
        crucible.memory.delete(memory.id)
    session.show({"deleted": memory.id}, lambda _: Text.assemble("deleted ", (memory.id, "bold")))


@command(app)
def status(session: Session) -> None:
    """The progress of the index of memories, and the events that it cannot read."""
    with session.connect() as crucible:
        session.show(crucible.memory.status(), _status)


def _find_memory(crucible: Crucible, id: str) -> MemoryView:
    def beginning(start: str) -> list[ScoredMemory]:
        return crucible.memory.list(filter={"id": {"starts_with": start}}, limit=_SHOWN)

    return find_by_id(id, "mem", crucible.memory.get, beginning)


def _links(targets: list[str] | None) -> list[dict[str, str]] | None:
    return None if targets is None else [{"target": target} for target in targets]


def _written_view(written: Written) -> Text:
    return Text.assemble((written.id, "bold"), (f"  #{written.sequence}", "dim"))


def _status(status: MemoryStatus) -> Text:
    text = Text(f"{status.memories} memories, as of #{status.sequence}")
    if status.skipped:
        text.append(f"\n{status.skipped} events could not be read; they are in the log, and in no memory:", "yellow")
    for event in status.latest:
        text.append(f"\n  #{event.sequence}  {clean(event.reason, 300)}")
    return text
