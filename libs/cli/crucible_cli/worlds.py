"""`crucible worlds`: the worlds that events belong to."""

from typing import Annotated

import typer
from rich.text import Text

from .session import Session, command
from .tables import worlds_table

app = typer.Typer(no_args_is_help=True, help="List, add and remove worlds.")

Id = Annotated[str, typer.Argument(help="The world: letters, digits, _, - and .")]


@command(app, table=True)
def list_(session: Session) -> None:
    """All worlds, with their rooms."""
    with session.connect() as crucible:
        session.list("worlds", list(crucible.worlds.list(page_size=1000)), worlds_table)


@command(app)
def add(session: Session, id: Id, description: Annotated[str, typer.Option(help="What it is for.")] = "") -> None:
    """Make a world; one that is there already stays as it is."""
    with session.connect() as crucible:
        world = crucible.worlds.create(id, description=description)
    session.show(world, lambda _: Text.assemble("world ", (world.id, "bold")))


@command(app)
def rm(
    session: Session,
    id: Id,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove its events, for good.")] = False,
) -> None:
    """Remove a world. Its events can still be read, until they expire."""
    with session.connect() as crucible:
        crucible.worlds.delete(id, purge=purge)
    done = "purged " if purge else "deleted "
    session.show({"deleted": id, "purged": purge}, lambda _: Text.assemble(done, (id, "bold")))
