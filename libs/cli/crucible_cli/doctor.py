"""`crucible doctor`: fires a synthetic event through every hook and webhook, in dry run, and says which are live."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from crucible_client import Crucible
from crucible_core.errors import CrucibleError
from crucible_core.protocol.shared import Check, CheckStep

from .listing import Column, Listing
from .session import Session, command
from .summary import clean, duration
from .tables import check_view, state_text

app = typer.Typer()
AT_ONCE = 8
FAULTS = ("inert", "failing")
CONNECTS = "accepts connections"
"""The verdict on a webhook that was only connected to."""


class Finding(msgspec.Struct, frozen=True):
    """What is known of one handler; `kind` is hook or webhook."""

    kind: str
    id: str
    check: Check


class Diagnosis(msgspec.Struct, frozen=True):
    """`healthy` is false when something that is enabled does not work as far as a dry run can tell."""

    healthy: bool
    findings: list[Finding]


@command(app, table=True)
def doctor(session: Session) -> None:
    """Prove the wiring: a synthetic event goes through every hook and webhook, in dry run; nothing is changed.

    A webhook's endpoint is only connected to. Exit code 1 when one that is enabled does not work.
    """
    with session.connect() as crucible:
        diagnosis = diagnose(crucible)
    session.show(diagnosis, diagnosis_view)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def diagnose(crucible: Crucible) -> Diagnosis:
    """Every hook and webhook, several at once, in the order of their lists."""
    hooks = [("hook", hook.name, hook.name, crucible.hooks.test) for hook in crucible.hooks.list()]
    webhooks = [("webhook", hook.id, hook.name, crucible.webhooks.test) for hook in crucible.webhooks.list()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        findings = list(pool.map(lambda handler: _examine(*handler), [*hooks, *webhooks]))
    return Diagnosis(all(finding.check.verdict in ("live", CONNECTS, "disabled") for finding in findings), findings)


def _examine(kind: str, id: str, name: str, test: Callable[..., Check]) -> Finding:
    try:
        check = test(id, dry_run=True)
    except CrucibleError as error:
        check = Check(name=name, verdict="inert", reason=error.detail, steps=[CheckStep("test", False, error.detail)])
    return Finding(kind, id, msgspec.structs.replace(check, name=name))


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """A table of all, and one line that says what to do."""
    if not diagnosis.findings:
        return Text("No hooks and no webhooks: nothing to prove. Add one: crucible hooks add FILE.md", "dim")
    columns = (
        Column("handler", floor=16),
        Column("kind", 3),
        Column("verdict", floor=10),
        Column("took", 2, right=True),
    )
    table = Listing(columns, [_row(finding.kind, finding.check) for finding in diagnosis.findings])
    faults = [check_view(finding.check) for finding in diagnosis.findings if finding.check.verdict in FAULTS]
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
