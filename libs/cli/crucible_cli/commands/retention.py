"""`crucible retention`: how long events are kept."""

from typing import Annotated, Any

import typer

from crucible_cli.options import json_of, text_of
from crucible_cli.session import Session, Yes, command
from crucible_cli.tables import retention_table

app = typer.Typer(no_args_is_help=True, help="Show and set how long events are kept.")


@command(app, "get", table=True, alias="show")
def show(session: Session) -> None:
    """The rules, in their order: the first that fits an event counts."""
    with session.connect() as crucible:
        session.show(crucible.retention.get(), retention_table)


@command(app, "set")
def set_(
    session: Session,
    rules: Annotated[
        str, typer.Argument(help='A list of {"type", "keep", "world_id"}, or {"rules": […]}: JSON, @FILE or -.')
    ],
    revision: Annotated[
        int | None, typer.Option(min=0, help="Only if the rules are still those of this revision (see `get`).")
    ] = None,
    yes: Yes = False,
) -> None:
    """Replace the rules, for events that are written from now on."""
    replacement = _rules(rules)
    with session.connect() as crucible:
        if not yes:
            session.err.print(retention_table(crucible.retention.get()))
            session.confirm(
                f"Replace these rules by {len(replacement)} other{'' if len(replacement) == 1 else 's'}?", yes
            )
        session.show(crucible.retention.put(replacement, expected_revision=revision), retention_table)


def _rules(text: str) -> list[dict[str, Any]]:
    found: Any = json_of(text_of(text, "RULES"), object, "RULES")
    rules = found.get("rules") if isinstance(found, dict) else found
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise typer.BadParameter('RULES: give a list of rules, or {"rules": […]}')
    return rules
