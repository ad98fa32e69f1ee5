"""`crucible memory`: keep and find memories."""

from typing import Annotated

import typer
from rich.text import Text

from crucible_client import Written

from .given import json_object, text_of
from .session import Session, command
from .tables import memories_table, memory_panel

app = typer.Typer(no_args_is_help=True, help="Keep and find memories.")


@command(app)
def add(
    session: Session,
    content: Annotated[str, typer.Argument(help="The text, @FILE or - (stdin).")],
    tag: Annotated[list[str] | None, typer.Option("--tag", "-t", help="A tag; repeat for more.")] = None,
    link: Annotated[list[str] | None, typer.Option("--link", help="A memory's id or a note's title; repeat.")] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object, @FILE or -.")] = None,
) -> None:
    """Keep a memory; answered once it is durable."""
    links = [{"target": target} for target in link] if link else None
    with session.connect() as crucible:
        written = crucible.memory.create(
            text_of(content, "CONTENT"), tags=tag, links=links, metadata=json_object(metadata, "--metadata")
        )
    session.show(written, _written)


@command(app)
def get(session: Session, id: Annotated[str, typer.Argument(help="The memory's id (mem_…).")]) -> None:
    """One memory, whole."""
    with session.connect() as crucible:
        session.show(crucible.memory.get(id), memory_panel)


@command(app, table=True)
def query(
    session: Session,
    text: Annotated[str | None, typer.Argument(help="Words to look for; none: the latest.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", "-t", help="Only with this tag; repeat for more.")] = None,
    filter: Annotated[str | None, typer.Option("--filter", "-f", help="A filter as a JSON object or @FILE.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 10,
) -> None:
    """The best matches, the best first."""
    with session.connect() as crucible:
        found = crucible.memory.query(text, tags=tag, filter=json_object(filter, "--filter"), limit=limit)
    session.list("memories", found, memories_table)


def _written(written: Written) -> Text:
    return Text.assemble((written.id, "bold"), (f"  #{written.sequence}", "dim"))
