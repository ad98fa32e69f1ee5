"""`crucible events types`: the catalogue of event types, and what users add to it."""

from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text
from typer.core import TyperGroup

from .given import payload_of
from .session import Session, command
from .tables import as_json, types_table


class Listing(TyperGroup):
    """A group that lists when no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asked = args[0] if args else ""
        named = asked in ctx.help_option_names or (asked and not asked.startswith("-"))
        parsed: list[str] = super().parse_args(ctx, args if named else ["list", *args])
        return parsed


app = typer.Typer(cls=Listing, help="List, show and register event types.")

Type = Annotated[str, typer.Argument(help="A type or an alias, such as Order.Placed.")]


@command(app)
def list_(
    session: Session,
    registered: Annotated[bool, typer.Option("--registered", help="Only what users registered.")] = False,
) -> None:
    """All event types: version, aliases, and how many events of each the log has."""
    with session.connect() as crucible:
        found = [kind for kind in crucible.events.types() if kind.registered or not registered]
    session.show(found, types_table)


@command(app)
def show(session: Session, type: Type) -> None:
    """One event type, with the JSON Schema of its payload."""
    with session.connect() as crucible:
        found = crucible.events.get_type(type)
    session.show(found, lambda kind: Group(types_table([kind]), as_json(kind.schema)))


@command(app)
def add(
    session: Session,
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE.json]", help="A file, or - (stdin): an object with type and schema."),
    ] = None,
    type: Annotated[str | None, typer.Option("--type", "-t", help="Category.Event, or Custom.name.")] = None,
    version: Annotated[str | None, typer.Option(help="Such as 1.1.0; later than the versions before.")] = None,
    schema: Annotated[
        str | None, typer.Option("--schema", "-s", help="The JSON Schema of the payload: a file, - or JSON.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="When such an event happens.")] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="Another name for it; repeat for more.")] = None,
) -> None:
    """Register an event type, or a later version of one. Options go before what the file says."""
    given = {} if file is None else payload_of(_source(file), "FILE")
    if schema is not None:
        given["schema"] = payload_of(_source(schema), "--schema")
    options = {"type": type, "version": version, "description": description, "aliases": alias}
    given |= {name: value for name, value in options.items() if value is not None}
    if missing := [name for name in ("type", "schema") if name not in given]:
        raise typer.BadParameter(f"{' and '.join(missing)} missing: give a FILE.json, or --type and --schema")
    if unknown := given.keys() - {"type", "version", "schema", "description", "aliases"}:
        raise typer.BadParameter(f"{min(unknown)} is not known: a type has type, version, schema, description, aliases")
    with session.connect() as crucible:
        registered = crucible.events.register_type(given.pop("type"), given.pop("schema"), **given)
    session.show(registered, lambda kind: Text.assemble((kind.type, "bold"), f" {kind.version} is registered"))


@command(app)
def rm(session: Session, type: Type) -> None:
    """Remove a registered event type of which the log has no events."""
    with session.connect() as crucible:
        crucible.events.delete_type(type)
    session.show({"deleted": type}, lambda _: Text.assemble("deleted ", (type, "bold")))


def _source(given: str) -> str:
    """A file's name needs no @ here; JSON itself begins with a brace."""
    return given if given == "-" or given.startswith("@") or given.lstrip().startswith("{") else f"@{given}"
