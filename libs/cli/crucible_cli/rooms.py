"""`crucible rooms`: the rooms of each world."""

from typing import Annotated

import typer
from rich.text import Text

from .session import Session, command
from .tables import rooms_table

app = typer.Typer(no_args_is_help=True, help="List, add and remove the rooms of a world.")

World = Annotated[str, typer.Argument(help="The world.")]
Id = Annotated[str, typer.Argument(help="The room: letters, digits, _, - and .")]


@command(app, table=True)
def list_(session: Session, world: World = "default") -> None:
    """The rooms of a world."""
    with session.connect() as crucible:
        session.list("rooms", crucible.rooms.list(world), rooms_table)


@command(app)
def add(session: Session, world: World, id: Id) -> None:
    """Make a room; one that is there already stays as it is."""
    with session.connect() as crucible:
        room = crucible.rooms.create(world, id)
    session.show(room, lambda _: Text.assemble("room ", (room.id, "bold"), f" in {world}"))


@command(app)
def rm(session: Session, world: World, id: Id) -> None:
    """Remove a room. Its events can still be read, until they expire."""
    with session.connect() as crucible:
        crucible.rooms.delete(world, id)
    session.show({"deleted": id}, lambda _: Text.assemble("deleted ", (id, "bold")))
