"""`crucible webhooks`: the webhook registry and its deliveries."""

from itertools import islice
from typing import Annotated, Any

import typer
from rich.text import Text

from .given import json_object, text_of
from .session import Session, command
from .tables import attempts_table, check_view, webhook_panel, webhooks_table

app = typer.Typer(no_args_is_help=True, help="List, create and try webhooks.")

Id = Annotated[str, typer.Argument(help="The webhook's id (whk_…).")]


@command(app)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="A name for people.")],
    endpoint: Annotated[str, typer.Argument(metavar="URL", help="Where deliveries go.")],
    on: Annotated[
        list[str] | None, typer.Option("--on", help="A type, alias or wildcard; repeat for more. Default: *")
    ] = None,
    filter: Annotated[
        str | None, typer.Option("--filter", "-f", help="A filter on each of them: JSON or @FILE.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="The signing secret: text, @FILE or -. One is made if none.")
    ] = None,
    bearer: Annotated[str | None, typer.Option(help="Also send this bearer token: text, @FILE or -.")] = None,
    basic: Annotated[str | None, typer.Option(help="Also send USER:PASSWORD: text, @FILE or -.")] = None,
    timeout_ms: Annotated[int | None, typer.Option(min=1, help="The time for one whole exchange, in ms.")] = None,
) -> None:
    """Register an endpoint. Its signing secret is printed this once."""
    found = json_object(filter, "--filter") or {}
    filters: list[dict[str, Any]] = [{"event_type": kind, "filter": found} for kind in on or ["*"]]
    options = None if timeout_ms is None else {"timeout_ms": timeout_ms}
    auth = _auth(secret, bearer, basic)
    with session.connect() as crucible:
        session.show(crucible.webhooks.create(name, endpoint, filters, auth=auth, options=options), webhook_panel)


@command(app, table=True)
def list_(session: Session) -> None:
    """All webhooks, with their states and counters."""
    with session.connect() as crucible:
        session.list("webhooks", crucible.webhooks.list(), webhooks_table)


@command(app, table=True)
def attempts(
    session: Session, id: Id, limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20
) -> None:
    """The latest attempts at deliveries: status, time and what went wrong."""
    with session.connect() as crucible:
        found = list(islice(crucible.webhooks.attempts(id, page_size=min(limit, 500)), limit))
    session.list("attempts", found, attempts_table)


@command(app, "test")
def try_(
    session: Session,
    id: Id,
    real: Annotated[
        bool, typer.Option("--real", help="Send a delivery; else the endpoint is only connected to.")
    ] = False,
) -> None:
    """Fire one synthetic event through a webhook. Exit code 1 when it is not live."""
    with session.connect() as crucible:
        check = crucible.webhooks.test(id, dry_run=not real)
    session.show(check, check_view)
    if check.verdict == "inert":
        raise typer.Exit(1)


@command(app)
def delete(session: Session, id: Id) -> None:
    """Remove a webhook."""
    with session.connect() as crucible:
        crucible.webhooks.delete(id)
    session.show({"deleted": id}, lambda _: Text.assemble("deleted ", (id, "bold")))


def _auth(secret: str | None, bearer: str | None, basic: str | None) -> dict[str, str] | None:
    if bearer and basic:
        raise typer.BadParameter("--bearer and --basic exclude each other")
    auth = {"secret": text_of(secret, "--secret").strip()} if secret else {}
    if bearer:
        return {**auth, "type": "bearer", "token": text_of(bearer, "--bearer").strip()}
    if basic:
        user, colon, password = text_of(basic, "--basic").strip().partition(":")
        if not colon:
            raise typer.BadParameter("--basic: USER:PASSWORD is wanted")
        return {**auth, "type": "basic", "username": user, "password": password}
    return {**auth, "type": "hmac"} if auth else None
