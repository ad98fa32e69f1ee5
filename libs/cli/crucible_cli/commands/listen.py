"""`crucible listen`: a local endpoint to try webhooks with."""

import contextlib
import errno
import socket
from typing import Annotated

import typer
import uvicorn
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from crucible_cli.display import clean, summarise
from crucible_cli.options import text_of
from crucible_cli.receiver import Delivery, receiver
from crucible_cli.session import Session, command
from crucible_cli.tables import as_json, clock
from crucible_cli.tree import type_text
from crucible_client.signing import key_of
from crucible_core.errors import CrucibleError

app = typer.Typer()

_REASONS = {
    errno.EADDRINUSE: "the port is taken; --port 0 takes a free one",
    errno.EACCES: "the port is for the system's own programs; --port 0 takes a free one",
    errno.EPERM: "it is not allowed here",
}
"""By errno; all others are about the address."""


@command(app)
def listen(
    session: Session,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 9000,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    secret: Annotated[
        str | None, typer.Option(envvar="CRUCIBLE_WEBHOOK_SECRET", help="The webhook's secret: text, @FILE or -.")
    ] = None,
    fail: Annotated[int, typer.Option(min=0, help="Answer 500 to the first so many deliveries.")] = 0,
) -> None:
    """Receive webhooks here, until Ctrl-C: verify each delivery's signatures and print it.

    \b
    crucible listen --secret my-own-secret
    crucible webhooks create mine http://127.0.0.1:9000/ --on "Memory.*" --secret my-own-secret
    """
    known = text_of(secret, "--secret").strip() if secret else None
    if known:
        key_of(known)
    with _bind(host, port) as bound, contextlib.suppress(KeyboardInterrupt):
        url = f"http://{host}:{bound.getsockname()[1]}/"
        session.note(f"listening at {url} — Ctrl-C ends it")
        session.note("signatures are verified" if known else "no --secret: signatures are not verified")
        serve(receiver(known, lambda delivery: session.line(delivery, delivery_view), fail), bound)


def serve(app: object, bound: socket.socket) -> None:
    """Serves an ASGI app on a bound socket until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="h11",  # the faster parser loses the body of a request that offers HTTP/2
        log_config=None,
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[bound])


def delivery_view(delivery: Delivery) -> RenderableType:
    """A delivery as a panel: whether it is genuine, what it says, and what it was answered."""
    mark, colour = {True: ("✓ verified", "green"), False: ("✗ not verified", "red"), None: ("unverified", "yellow")}[
        delivery.verified
    ]
    head = Text.assemble((mark, f"bold {colour}"), "  ")
    head.append(type_text(delivery.event) if delivery.event else Text(clean(delivery.event_type or "not an event")))
    head.append(f"  {clock(delivery.at)}", "dim")
    parts: list[RenderableType] = [*_lines(delivery)]
    if delivery.event:
        parts.append(as_json(delivery.event.data.payload))
    answer = Text(f"answered {delivery.status}", "green" if delivery.status < 300 else "red")
    return Panel(
        Group(*parts),
        title=head,
        title_align="left",
        subtitle=answer,
        subtitle_align="right",
        box=box.ROUNDED,
        expand=False,
    )


def _lines(delivery: Delivery) -> list[Text]:
    lines = [Text(clean(delivery.problem, 300), "red")] if delivery.problem else []
    if delivery.event:
        lines.append(Text(summarise(delivery.event, 160)))
    ids = [delivery.event_id, delivery.delivery_id, delivery.path if delivery.path != "/" else None]
    lines.append(Text("  ".join(clean(id, 80) for id in ids if id), "dim"))
    return lines


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), reuse_port=False)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, "this machine does not have that address")
        raise CrucibleError(f"cannot listen on {host}:{port}: {reason}") from error
