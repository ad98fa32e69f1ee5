"""`crucible rooms`: the rooms of each world."""

from typing import Annotated

import typer
from rich.text import Text

from crucible_cli.session import Session, Yes, command
from crucible_cli.tables import rooms_table
from crucible_core.errors import NotFoundError

app = typer.Typer(no_args_is_help=True, help="List, add and remove the rooms of a world.")

World = Annotated[str, typer.Argument(help="The world.")]
Id = Annotated[str, typer.Argument(help="The room: letters, digits, _, - and .")]


@command(app, table=True)
def list_(session: Session, world: World = "default") -> None:
    """The rooms of a world."""
    with session.connect() as crucible:
        session.list("rooms", crucible.rooms.list(world), rooms_table)


@command(app, alias="create")
def add(session: Session, world: World, id: Id) -> None:
    """Make a room; one that is there already stays as it is."""
    with session.connect() as crucible:
        room = crucible.rooms.create(world, id)
    session.show(room, lambda _: Text.assemble("room ", (room.id, "bold"), f" in {world}"))


@command(app, alias="rm")
def delete(session: Session, world: World, id: Id, yes: Yes = False) -> None:
    """Remove a room. Its events can still be read, until they expire."""
    with session.connect() as crucible, session.removing(f"the room {id} of {world}"):
        if id not in [room.id for room in crucible.rooms.list(world)]:
            raise NotFoundError(f"there is no room {id} in the world {world}")
        if not yes:
            events = crucible.events.count(world_id=world, room_id=id).count
            session.confirm(f"Remove the room {id} of {world}? Its {events:,} events stay until they expire.", yes)
        crucible.rooms.delete(world, id)
    session.show({"deleted": id}, lambda _: Text.assemble("deleted ", (id, "bold")))
