"""`crucible events types`: the catalogue of event types, users' additions, and the file that carries them elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group
from rich.text import Text
from typer.core import TyperGroup

from crucible_cli.ndjson import open_output
from crucible_cli.options import payload_of
from crucible_cli.session import Session, Yes, command
from crucible_cli.tables import as_json, types_table
from crucible_core.protocol.events import DescribedType, EventType, TypeRecord
from crucible_core.types.kinds import Registered
from crucible_core.types.names import aliases

_FIELDS = frozenset(("type", "version", "schema", "schemas", "description", "aliases"))
_SHOWN_ONLY = frozenset(DescribedType.__struct_fields__) - _FIELDS
"""Fields that `types get --json` has beside them: none could be registered."""
Type = Annotated[str, typer.Argument(help="A type or an alias, such as Order.Placed.")]


class ListByDefault(TyperGroup):
    """A group that lists when no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asked = args[0] if args else ""
        named = asked in ctx.help_option_names or (asked and not asked.startswith("-"))
        parsed: list[str] = super().parse_args(ctx, args if named else ["list", *args])
        return parsed


app = typer.Typer(cls=ListByDefault, help="List, show and register event types.")


@command(app, table=True)
def list_(
    session: Session,
    registered: Annotated[bool, typer.Option("--registered", help="Only what users registered.")] = False,
) -> None:
    """All event types: version, aliases, and how many events of each the log has."""
    with session.connect() as crucible:
        found = [kind for kind in crucible.events.types() if kind.registered or not registered]
    session.list("types", found, types_table)


@command(app, "get", table=True, alias="show")
def show(session: Session, type: Type) -> None:
    """One event type, with the JSON Schema of its payload."""
    with session.connect() as crucible:
        found = crucible.events.get_type(type)
    session.show(found, lambda kind: Group(types_table([kind]), as_json(kind.schema)))


@command(app, alias="create")
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
    """Register an event type, or a later version of one, or all that `types export` wrote. Options go before what the
    file says."""
    found = definitions({} if file is None else payload_of(_source(file), "FILE"))
    options: dict[str, Any] = {"type": type, "version": version, "description": description, "aliases": alias}
    options["schema"] = None if schema is None else payload_of(_source(schema), "--schema")
    chosen = {name: value for name, value in options.items() if value is not None}
    if chosen and len(found) != 1:
        raise typer.BadParameter("options are for a file of one version of one type")
    wanted = [{**one, **chosen} for one in found]
    for one in wanted:
        if missing := [name for name in ("type", "schema") if name not in one]:
            raise typer.BadParameter(f"{' and '.join(missing)} missing: give a FILE.json, or --type and --schema")
    with session.connect() as crucible:
        made = [crucible.events.register_type(one.pop("type"), one.pop("schema"), **one) for one in wanted]
    session.show(made[0] if len(made) == 1 else made, lambda _: _types_view(made))


@command(app)
def export(
    session: Session,
    file: Annotated[str, typer.Argument(help="Where to; - is stdout.")] = "-",
) -> None:
    """Write all registered types with their versions: what `crucible events types add` reads."""
    with session.connect() as crucible:
        names = [kind.type for kind in crucible.events.types() if kind.registered]
        found = export_document([crucible.events.get_type(name) for name in names])
    with open_output(file) as out:
        out.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    session.note(f"{len(names):,} types")


@command(app, alias="rm")
def delete(session: Session, type: Type, yes: Yes = False) -> None:
    """Remove a registered event type of which the log has no events."""
    with session.connect() as crucible, session.removing(f"the type {type}"):
        if not yes:
            found = crucible.events.get_type(type)
            versions = f"{len(found.versions)} version{'s' if len(found.versions) > 1 else ''}"
            session.confirm(f"Remove the type {found.type} with its {versions}?", yes)
        crucible.events.delete_type(type)
    session.show({"deleted": type}, lambda _: Text.assemble("deleted ", (type, "bold")))


def export_document(kinds: list[DescribedType]) -> dict[str, Any]:
    """A document that `definitions` reads as the same types."""
    return {"types": [_entry(kind) for kind in kinds]}


def definitions(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The registrations to make one after another, each a version of a type. A usage error for fields that no type
    has."""
    if "types" not in document:
        return _versions(document)
    types = document["types"]
    if not isinstance(types, list) or not all(isinstance(one, dict) for one in types):
        raise typer.BadParameter("types: must be a list of types")
    return [version for one in types for version in _versions(one)]


def _entry(kind: DescribedType) -> dict[str, Any]:
    own = _own(kind.type, kind.aliases)
    return {"type": kind.type, "description": kind.description, "aliases": own, "schemas": kind.schemas}


def _versions(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    if unknown := document.keys() - _FIELDS - _SHOWN_ONLY:
        raise typer.BadParameter(f"{min(unknown)} is not known: a type has type, version, schema, description, aliases")
    found = {name: value for name, value in document.items() if name in _FIELDS}
    if isinstance(found.get("type"), str) and isinstance(found.get("aliases"), list):
        found["aliases"] = _own(found["type"], found["aliases"])
    schemas = found.pop("schemas", None)
    if not isinstance(schemas, dict) or not schemas:
        return [found]
    return [{**found, "schema": schema, "version": version} for version, schema in schemas.items()]


def _own(type: str, names: list[str]) -> list[str]:
    """Without those that follow from the name."""
    formed = aliases(Registered(TypeRecord(type=type, versions=[])))
    return [alias for alias in names if alias not in formed]


def _types_view(made: Sequence[EventType]) -> Text:
    if not made:
        return Text("The file has no types: nothing to register.", "dim")
    return Text("\n").join(Text.assemble((kind.type, "bold"), f" {kind.version} is registered") for kind in made)


def _source(text: str) -> str:
    """A file's name needs no @ here; JSON itself begins with a brace."""
    return text if text == "-" or text.startswith("@") or text.lstrip().startswith("{") else f"@{text}"
