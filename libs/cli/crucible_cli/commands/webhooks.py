"""`crucible webhooks`: the webhook registry and its deliveries."""

import sys
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import typer
from rich.text import Text

from crucible_cli.display import clean
from crucible_cli.lookup import find_by_id
from crucible_cli.options import json_object, text_of
from crucible_cli.session import Limit, Session, Yes, command
from crucible_cli.tables import attempts_table, check_view, state_text, webhook_panel, webhook_view, webhooks_table
from crucible_client import Crucible
from crucible_core.protocol.webhooks import WebhookView

app = typer.Typer(no_args_is_help=True, help="List, create, change and try webhooks.")
Which = Annotated[str, typer.Argument(help="The webhook: its name, its id (whk_…), or the beginning of that.")]
Types = Annotated[list[str] | None, typer.Option("--on", help="A type, alias or wildcard; repeat for more.")]
Filter = Annotated[str | None, typer.Option("--filter", "-f", help="A filter on each of them: JSON or @FILE.")]
Secret = Annotated[str | None, typer.Option(help="The signing secret: text, @FILE or -. One is made if none.")]
Bearer = Annotated[str | None, typer.Option(help="Also send this bearer token: text, @FILE or -.")]
Basic = Annotated[str | None, typer.Option(help="Also send USER:PASSWORD: text, @FILE or -.")]
Timeout = Annotated[int | None, typer.Option(min=1, help="The time for one whole exchange, in ms.")]


class Missed(StrEnum):
    deliver = "deliver"
    skip = "skip"


@command(app, alias="add")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="A name that no other webhook has.")],
    endpoint: Annotated[str, typer.Argument(metavar="URL", help="Where deliveries go.")],
    on: Types = None,
    filter: Filter = None,
    secret: Secret = None,
    bearer: Bearer = None,
    basic: Basic = None,
    timeout_ms: Timeout = None,
) -> None:
    """Register an endpoint, for all events if no --on is given. Its signing secret is printed this once."""
    filters = _filters(on or ["*"], filter)
    options = None if timeout_ms is None else {"timeout_ms": timeout_ms}
    auth = _auth(secret, bearer, basic)
    with session.connect() as crucible:
        session.show(crucible.webhooks.create(name, endpoint, filters, auth=auth, options=options), webhook_panel)


@command(app, table=True)
def list_(session: Session, limit: Limit = 1000) -> None:
    """The webhooks, with their states and counters."""
    with session.connect() as crucible:
        session.first("webhooks", limit, crucible.webhooks.page, webhooks_table)


@command(app, alias="show")
def get(session: Session, webhook: Which) -> None:
    """One webhook, whole, and how many deliveries wait for it."""
    with session.connect() as crucible:
        session.show(find_webhook(crucible, webhook), webhook_view)


@command(app)
def update(
    session: Session,
    webhook: Which,
    changes: Annotated[
        str | None, typer.Argument(help="A merge patch of the webhook: JSON, @FILE or -; the options change it too.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    endpoint: Annotated[str | None, typer.Option("--to", metavar="URL", help="Where deliveries go.")] = None,
    on: Types = None,
    filter: Filter = None,
    bearer: Bearer = None,
    basic: Basic = None,
    timeout_ms: Timeout = None,
    paused: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Keep deliveries waiting, or send them.", show_default=False)
    ] = None,
) -> None:
    """Change a webhook; what is not given stays as it is.

    \b
    crucible webhooks update ci --to https://example.com/new --on "Memory.*" --on File.Created
    crucible webhooks update ci '{"options": {"concurrency": 2}}'
    """
    patch = json_object(changes, "CHANGES") or {}
    if filter is not None and not on:
        raise typer.BadParameter("--filter: give the types, too: --on")
    given: dict[str, Any] = {
        "name": name,
        "url": endpoint,
        "event_filters": _filters(on, filter) if on else None,
        "auth": _auth(None, bearer, basic),
        "options": None if timeout_ms is None else {"timeout_ms": timeout_ms},
        "paused": paused,
    }
    for field, value in given.items():
        if isinstance(value, dict) and isinstance(patch.get(field), dict):
            patch[field] |= value
        elif value is not None:
            patch[field] = value
    if not patch:
        raise typer.BadParameter("give what is to change: CHANGES, or an option such as --to or --on")
    with session.connect() as crucible:
        session.show(crucible.webhooks.update(find_webhook(crucible, webhook).id, patch), webhook_view)


@command(app)
def rotate_secret(
    session: Session,
    webhook: Which,
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds for which the secret before goes on signing, too.")
    ] = 86_400,
    secret: Secret = None,
) -> None:
    """Sign with another secret, which is printed this once."""
    given = None if secret is None else text_of(secret, "--secret").strip()
    with session.connect() as crucible:
        made = crucible.webhooks.rotate_secret(find_webhook(crucible, webhook).id, grace_s=grace, secret=given)
    session.show(made, webhook_panel)


@command(app)
def enable(
    session: Session,
    webhook: Which,
    missed: Annotated[
        Missed | None, typer.Option(help="The deliveries that have waited: deliver or skip; at a terminal it is asked.")
    ] = None,
) -> None:
    """Deliver again; what has waited meanwhile is delivered, or skipped."""
    with session.connect() as crucible:
        wanted = find_webhook(crucible, webhook)
        if missed is None and wanted.waiting and sys.stdin.isatty():
            kept = typer.confirm(f"{wanted.waiting:,} waiting: deliver them (no: skip them)?", default=True, err=True)
            missed = Missed.deliver if kept else Missed.skip
        session.show(crucible.webhooks.enable(wanted.id, missed=(missed or Missed.deliver).value), _state)


@command(app)
def disable(session: Session, webhook: Which) -> None:
    """Deliver nothing for now; what the webhook wants waits for it."""
    with session.connect() as crucible:
        session.show(crucible.webhooks.disable(find_webhook(crucible, webhook).id), _state)


@command(app, alias="rm")
def delete(session: Session, webhook: Which, yes: Yes = False) -> None:
    """Remove a webhook, and the deliveries that wait for it."""
    with session.connect() as crucible, session.removing(f"the webhook {webhook}"):
        gone = find_webhook(crucible, webhook)
        if not yes:
            session.err.print(webhook_view(gone))
            waits = "no delivery waits" if not gone.waiting else f"{gone.waiting:,} deliveries wait"
            waits = "1 delivery waits" if gone.waiting == 1 else waits
            session.confirm(f"Remove the webhook {gone.name} ({waits} for it)?", yes)
        crucible.webhooks.delete(gone.id)
    session.show({"deleted": gone.id}, lambda _: Text.assemble("deleted ", (gone.id, "bold"), f"  {clean(gone.name)}"))


@command(app, table=True)
def attempts(
    session: Session,
    webhook: Which,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    """The latest attempts at deliveries: status, time and what went wrong."""
    with session.connect() as crucible:
        id = find_webhook(crucible, webhook).id
        latest = list(islice(crucible.webhooks.attempts(id, page_size=min(limit, 500)), limit))
    session.list("attempts", latest, attempts_table)


@command(app, "test")
def try_(
    session: Session,
    webhook: Which,
    type: Annotated[str | None, typer.Option("--type", help="Of this type; else of one that it wants.")] = None,
    payload: Annotated[str | None, typer.Option(help="The event's payload: JSON, @FILE or - (stdin).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only connect to the endpoint, and send nothing.")] = False,
) -> None:
    """Send one synthetic event to a webhook's endpoint. Exit code 1 when it does not take it."""
    body = json_object(payload, "--payload")
    with session.connect() as crucible:
        id = find_webhook(crucible, webhook).id
        check = crucible.webhooks.test(id, dry_run=dry_run, type=type, payload=body)
    session.show(check, check_view)
    if check.verdict == "inert":
        raise typer.Exit(1)


def find_webhook(crucible: Crucible, text: str) -> WebhookView:
    """The webhook of that name or id, or the only one whose id begins so. Raises NotFoundError, ConflictError."""
    return find_by_id(text, "whk", crucible.webhooks.get, lambda _: crucible.webhooks.list())


def _state(webhook: WebhookView) -> Text:
    return Text.assemble((clean(webhook.name), "bold"), "  ", state_text(webhook.state))


def _filters(on: list[str], filter: str | None) -> list[dict[str, Any]]:
    wanted = json_object(filter, "--filter") or {}
    return [{"event_type": kind, "filter": wanted} for kind in on]


def _auth(secret: str | None, bearer: str | None, basic: str | None) -> dict[str, str] | None:
    if bearer and basic:
        raise typer.BadParameter("--bearer and --basic exclude each other")
    auth = {"secret": text_of(secret, "--secret").strip()} if secret else {}
    if bearer:
        return {**auth, "type": "bearer", "token": text_of(bearer, "--bearer").strip()}
    if basic:
        user, colon, password = text_of(basic, "--basic").strip().partition(":")
        if not colon:
            raise typer.BadParameter("--basic: give USER:PASSWORD")
        return {**auth, "type": "basic", "username": user, "password": password}
    return {**auth, "type": "hmac"} if auth else None
