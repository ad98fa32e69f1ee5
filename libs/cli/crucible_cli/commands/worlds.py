"""`crucible worlds`: the worlds that events belong to."""

from typing import Annotated

import typer
from rich.text import Text

from crucible_cli.lookup import find_by_name
from crucible_cli.session import Session, Yes, command
from crucible_cli.tables import worlds_table
from crucible_client import Crucible
from crucible_core.errors import InvalidError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="List, add and remove worlds.")

Id = Annotated[str, typer.Argument(help="The world: letters, digits, _, - and .")]


@command(app, table=True)
def list_(session: Session) -> None:
    """All worlds, with their rooms."""
    with session.connect() as crucible:
        session.list("worlds", list(crucible.worlds.list(page_size=1000)), worlds_table)


@command(app, alias="create")
def add(session: Session, id: Id, description: Annotated[str, typer.Option(help="Its purpose.")] = "") -> None:
    """Make a world; one that is there already stays as it is."""
    with session.connect() as crucible:
        world = crucible.worlds.create(id, description=description)
    session.show(world, lambda _: Text.assemble("world ", (world.id, "bold")))


@command(app, table=True, alias="show")
def get(session: Session, id: Id) -> None:
    """One world, with its rooms."""
    with session.connect() as crucible:
        world = find_by_name(id, "world", crucible.worlds.get, lambda: [one.id for one in crucible.worlds.list()])
    session.show(world, lambda _: worlds_table([world]))


@command(app, alias="rm")
def delete(
    session: Session,
    id: Id,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove its events, for good.")] = False,
    yes: Yes = False,
) -> None:
    """Remove a world. Its events can still be read, until they expire."""
    with session.connect() as crucible, session.removing(f"the world {id}"):
        question = _question(crucible, id, purge)
        session.confirm(question, yes)
        crucible.worlds.delete(id, purge=purge)
    done = "purged " if purge else "deleted "
    session.show({"deleted": id, "purged": purge}, lambda _: Text.assemble(done, (id, "bold")))


def _question(crucible: Crucible, id: str, purge: bool) -> str:
    """The question that says how much will go. Raises NotFoundError where nothing is left of it: the API takes the
    same request again."""
    try:
        count = crucible.events.count(world_id=id).count
    except InvalidError as error:
        raise NotFoundError(f"there is no world {id}") from error
    if not (purge and count):
        crucible.worlds.get(id)
    events = f"{count:,} events"
    if purge:
        return f"Remove the world {id} and its {events}? Nobody can bring them back."
    rooms = len(crucible.worlds.get(id).rooms)
    return f"Remove the world {id} with {rooms} room{'s' if rooms > 1 else ''}? Its {events} stay until they expire."
