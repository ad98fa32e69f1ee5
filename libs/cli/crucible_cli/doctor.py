"""`crucible doctor`: how the installation does, and a synthetic event through every hook and webhook, in dry run."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from crucible_client import Crucible
from crucible_core.errors import CrucibleError
from crucible_core.protocol.losses import Loss
from crucible_core.protocol.shared import Check

from .health import Health, find_health, health_view
from .listing import Column, Listing
from .progress import HANDLERS, progress
from .session import Session, Yes, command
from .summary import clean, duration
from .tables import check_view, state_text

app = typer.Typer()
_SHOWN = 200
"""Handlers of which each has its line; of more, only those that are broken have one."""
FAULTS = ("inert", "failing")
CONNECTS = "accepts connections"
"""The verdict on a webhook that was only connected to."""


class Finding(msgspec.Struct, frozen=True):
    """One handler's check; `kind` is hook or webhook."""

    kind: str
    id: str
    check: Check


class Diagnosis(msgspec.Struct, frozen=True):
    """`healthy` is false when something is wrong with the installation, or something that is enabled does not work as
    far as a dry run can tell. `error` is why the handlers could not be asked."""

    healthy: bool
    findings: list[Finding]
    health: Health | None = None
    error: str | None = None


@command(app, table=True)
def doctor(
    session: Session,
    accept_losses: Annotated[
        bool, typer.Option("--accept-losses", help="Take for given what the log has lost; nothing else is done.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Say how the services, the disk and the log do, and prove the wiring: a synthetic event goes through every hook
    and webhook, in dry run; nothing is changed.

    A webhook's endpoint is only connected to. Exit code 1 when something is wrong, or does not work and is enabled.
    """
    with session.connect() as crucible:
        if accept_losses:
            _accept(session, crucible, yes)
            return
        with session.err.status("asking the services …"):
            health = find_health(session, crucible)
        what = "firing a synthetic event through every hook and webhook"
        with progress(session.err, what, None, HANDLERS) as bar:
            diagnosis = examine(crucible, health, bar.advance)
    session.show(diagnosis, diagnosis_view)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _accept(session: Session, crucible: Crucible, yes: bool) -> None:
    found = crucible.losses.list()
    if found and not yes:
        for loss in found:
            session.err.print(loss_text(loss))
        count = sum(loss.count for loss in found if not loss.stream)
        events = f"the loss of {count:,} events for given? What only the index has of them is gone then."
        question = f"Take {events if count else 'these losses for given?'}"
        session.confirm(question, yes)
    session.show(crucible.losses.accept(), _accepted)


def loss_text(loss: Loss) -> Text:
    if loss.stream:
        lost = f"{loss.count:,} messages" if loss.count else f"{loss.bytes:,} bytes that JetStream cannot read,"
        where = {"end": "at the end of", "log": "of the former"}.get(loss.kind, "of")
        sequences = f": sequences {loss.first} to {loss.last}" if loss.count else ""
        return Text(f"{lost} {where} {loss.stream}{sequences}, noticed {loss.found_at}")
    where = {"end": "at the end of the log", "log": "of a log that is gone"}.get(loss.kind, "of the log")
    return Text(f"{loss.count:,} events {where}: sequences {loss.first} to {loss.last}, noticed {loss.found_at}")


def _accepted(losses: Sequence[Loss]) -> RenderableType:
    if not losses:
        return Text("The log has lost nothing that is not accepted already.", "green")
    return Group(*(Text.assemble("accepted: ", loss_text(loss)) for loss in losses))


def examine(crucible: Crucible, health: Health, advance: Callable[[int], None]) -> Diagnosis:
    """The same with the handlers, unless the gateway cannot be asked; `advance` hears of each."""
    try:
        found = diagnose(crucible, advance)
    except CrucibleError as error:
        if health.good or not health.is_local:
            raise
        return Diagnosis(False, [], health, error.detail)
    return msgspec.structs.replace(found, healthy=found.healthy and health.good, health=health)


def diagnose(crucible: Crucible, advance: Callable[[int], None]) -> Diagnosis:
    """Every hook and webhook, in the order of their lists."""
    findings: list[Finding] = []
    for kind, checks in (("hook", crucible.hooks.test_all()), ("webhook", crucible.webhooks.test_all())):
        for tried in checks:
            findings.append(Finding(kind, tried.id, tried.check))
            advance(1)
    return Diagnosis(all(finding.check.verdict not in FAULTS for finding in findings), findings)


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """How the services do, a table of all handlers, and one line that says what to do."""
    if diagnosis.health is None:
        return _handlers(diagnosis)
    return Group(health_view(diagnosis.health), "", _handlers(diagnosis))


def _handlers(diagnosis: Diagnosis) -> RenderableType:
    if diagnosis.error is not None:
        return Text(f"The hooks and webhooks cannot be asked: {clean(diagnosis.error, 600)}", "red")
    if not diagnosis.findings:
        return Text("No hooks and no webhooks: nothing to prove. Add one: `crucible hooks add --help` shows how", "dim")
    columns = (
        Column("handler", floor=16),
        Column("kind", 3),
        Column("verdict", floor=10),
        Column("took", 2, right=True),
    )
    broken = [finding for finding in diagnosis.findings if finding.check.verdict in FAULTS]
    rows = diagnosis.findings if len(diagnosis.findings) <= _SHOWN else broken[:_SHOWN]
    table = Listing(columns, [_row(finding.kind, finding.check) for finding in rows]) if rows else Text()
    faults = [check_view(finding.check) for finding in broken[:_SHOWN]]
    return Group(table, *(part for fault in faults for part in ("", fault)), "", _conclusion(diagnosis.findings))


def _row(kind: str, check: Check) -> tuple[Text | str, ...]:
    took = "" if check.duration_ms is None else duration(check.duration_ms)
    return Text(clean(check.name, 200), "bold"), kind, state_text(check.verdict), took


def _conclusion(findings: Sequence[Finding]) -> Text:
    count = Counter(finding.check.verdict for finding in findings)
    text = Text(f"{count['live']} live, {count['disabled']} disabled, {count['inert']} inert")
    if reached := count[CONNECTS]:
        text.append(f", {reached} {'accepts' if reached == 1 else 'accept'} connections")
    text.append(f", {count['failing']} failing" if count["failing"] else "")
    if any(count[verdict] for verdict in FAULTS):
        return text.append(" — mend the others, or disable them", "yellow")
    if count[CONNECTS]:
        text.append(" — everything that is enabled is wired", "green")
        return text.append("; `crucible webhooks test` finds out whether an endpoint takes events", "dim")
    return text.append(" — everything that is enabled fires", "green")
