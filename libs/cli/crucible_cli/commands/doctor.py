"""`crucible doctor`: the health of the installation (services, disk, losses), and a synthetic event through every hook
and webhook, in dry run."""

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from crucible_cli.display import clean, duration
from crucible_cli.layout import Column, Listing
from crucible_cli.progress import HANDLERS, progress
from crucible_cli.session import Session, Yes, command, find_up
from crucible_cli.tables import check_view, state_text
from crucible_cli.up.state import DataDir, UpState
from crucible_cli.up.supervisor import LOOP_DEATHS, LOOP_S, Condition
from crucible_client import Crucible
from crucible_core.errors import CrucibleError
from crucible_core.limits import storage_reserve
from crucible_core.protocol.losses import Loss
from crucible_core.protocol.memory import MemoryStatus
from crucible_core.protocol.parts import Check, Readiness, Trouble

_PROBE_S = 3.0
_MIB = 1024 * 1024
_GOOD = frozenset({"ready"})
_METRIC = re.compile(rb"^crucible_(index_lag|parked_messages) ([0-9.e+]+)$", re.MULTILINE)
_LOSSES_SHOWN = 5
app = typer.Typer()
_SHOWN = 200
"""Handlers of which each has its line; of more, only those that are broken have one."""
FAULTS = ("inert", "failing")
CONNECTS = "accepts connections"
"""The result for a webhook that was only connected to."""


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process of the installation. `state` is `ready`, `hangs`, `failing` (a crash loop), …; `restarts` counts since
    `crucible up` was started, `index_lag` are the messages that its index has not read yet, and `parked` those of all
    services that were put aside, since nobody could handle them."""

    name: str
    state: str
    detail: str = ""
    restarts: int = 0
    index_lag: int | None = None
    parked: int | None = None


class Disk(msgspec.Struct, frozen=True):
    """Of the data directory. Below `reserve_bytes` nothing more is stored."""

    path: str
    free_bytes: int
    total_bytes: int
    reserve_bytes: int


class Health(msgspec.Struct, frozen=True):
    """`services` are all of an installation that runs here, else its gateway. `errors` are what is wrong and does not
    pass by itself. `memory` tells which events it could not read."""

    services: list[Service]
    errors: list[Trouble] = []
    losses: list[Loss] = []
    disk: Disk | None = None
    memory: MemoryStatus | None = None

    @property
    def is_local(self) -> bool:
        return self.disk is not None

    @property
    def good(self) -> bool:
        return not self.errors and all(service.state in _GOOD for service in self.services)


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


def find_health(session: Session, crucible: Crucible) -> Health:
    """Asks every process that can be asked. Never fails for one that does not answer."""
    up = find_up(session.data)
    here = up if up is not None and up.url.rstrip("/") == session.gateway.url else None
    urls = {"gateway": session.gateway.url}
    if here is not None:
        urls = {name: f"http://127.0.0.1:{port}" for name, port in here.ports.items() if name != "nats"}
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = dict(zip(urls, pool.map(_probe, urls.values()), strict=True))
    conditions = _conditions(session.data) if here is not None else {}
    services = [_service(name, answer, conditions.get(name)) for name, answer in answers.items()]
    if (nats := conditions.get("nats")) is not None:
        services.append(Service("nats", nats.state, _explanation(nats), nats.restarts))
    found = [error for readiness, _ in answers.values() if readiness for error in readiness.errors]
    errors = list(dict.fromkeys(found))
    return Health(services, errors, _losses(crucible, errors), _disk(session.data, here), _memory(crucible))


def health_view(health: Health) -> RenderableType:
    columns = (
        Column("service", floor=8),
        Column("state", floor=8),
        Column("restarts", 2, right=True),
        Column("says", floor=20),
    )
    rows = [
        (service.name, _state(service.state), str(service.restarts or ""), clean(_detail(service), 300))
        for service in health.services
    ]
    parts: list[RenderableType] = [Listing(columns, rows)]
    if health.disk is not None:
        parts += ["", _disk_text(health.disk)]
    for error in health.errors:
        parts += ["", Text.assemble((f"{error.code}: ", "bold red"), clean(error.message, 600))]
    if health.memory is not None and health.memory.skipped:
        parts += ["", _skipped_text(health.memory)]
    if health.losses:
        parts.append(
            Text(
                "  Put the log back from a backup; or keep what the index still has (crucible events export), and take"
                " the loss for given: crucible doctor --accept-losses",
                "yellow",
            )
        )
    return Group(*parts)


def _probe(url: str) -> tuple[Readiness | None, dict[str, int]]:
    """The answer of a /readyz, with its metrics of interest; nothing where it does not answer."""
    try:
        with httpx.Client(base_url=url, timeout=_PROBE_S) as http:
            readiness = msgspec.json.decode(http.get("/readyz").content, type=Readiness)
            found = _METRIC.findall(http.get("/metrics").content)
    except (httpx.HTTPError, msgspec.DecodeError):
        return None, {}
    return readiness, {name.decode(): int(float(value)) for name, value in found}


def _service(name: str, answer: tuple[Readiness | None, dict[str, int]], condition: Condition | None) -> Service:
    readiness, metrics = answer
    lag, parked = metrics.get("index_lag"), metrics.get("parked_messages")
    words = _explanation(condition) if condition else ""
    restarts = condition.restarts if condition else 0
    if readiness is None:
        state = condition.state if condition and condition.state not in _GOOD else "hangs" if condition else "away"
        return Service(name, state, words or "does not answer", restarts)
    if readiness.waiting_for:
        waits = f"waits for {', '.join(readiness.waiting_for)}"
        return Service(name, "not ready", waits, restarts, lag, parked)
    looping = condition is not None and _deaths(condition) >= LOOP_DEATHS
    return Service(name, "failing" if looping else "ready", words, restarts, lag, parked)


def _deaths(condition: Condition) -> int:
    """Those of the last minute: they were counted when its state changed last."""
    return condition.deaths if time.time() - condition.since < LOOP_S else 0


def _explanation(condition: Condition) -> str:
    """Why it is not well, or was not: the deaths of the last minute, and the last word before."""
    if deaths := _deaths(condition):
        times = "once" if deaths == 1 else f"{deaths} times"
        last = f": {condition.last_error}" if condition.last_error else ""
        return f"died {times} within a minute, last by {condition.last_end}{last}"
    if condition.state == "hangs":
        return f"has not answered for {time.time() - condition.since:.0f} s"
    return ""


def _conditions(data: DataDir) -> Mapping[str, Condition]:
    try:
        return msgspec.json.decode(data.conditions_file.read_bytes(), type=dict[str, Condition])
    except (OSError, msgspec.DecodeError):
        return {}


def _losses(crucible: Crucible, errors: list[Trouble]) -> list[Loss]:
    if not any(error.code == "losses" for error in errors):
        return []
    try:
        return crucible.losses.list()
    except CrucibleError:
        return []


def _memory(crucible: Crucible) -> MemoryStatus | None:
    try:
        return crucible.memory.status()
    except CrucibleError:
        return None


def _disk(data: DataDir, up: UpState | None) -> Disk | None:
    if up is None:
        return None
    try:
        found = shutil.disk_usage(Path(up.data))
    except OSError:
        return None
    return Disk(up.data, found.free, found.total, storage_reserve(found.total))


def _state(state: str) -> Text:
    return Text(state, "green" if state in _GOOD else "bold red")


def _detail(service: Service) -> str:
    lag = f"index {service.index_lag:,} behind" if service.index_lag else ""
    parked = f"{service.parked:,} messages of all services are parked" if service.parked else ""
    return "; ".join(part for part in (service.detail, lag, parked) if part)


def _skipped_text(memory: MemoryStatus) -> Text:
    events = "one event; it is" if memory.skipped == 1 else f"{memory.skipped:,} events; they are"
    text = Text(f"memory could not read {events} in the log, and in no memory:", "yellow")
    for event in memory.latest[:_LOSSES_SHOWN]:
        text.append(f"\n  #{event.sequence}  {clean(event.reason, 200)}")
    return text


def _disk_text(disk: Disk) -> Text:
    free, total, reserve = (size / _MIB for size in (disk.free_bytes, disk.total_bytes, disk.reserve_bytes))
    text = Text(f"disk: {free:,.0f} of {total:,.0f} MiB are free, {reserve:,.0f} MiB are kept free")
    return text.append(f" ({disk.path})", "dim")


def _accept(session: Session, crucible: Crucible, yes: bool) -> None:
    found = crucible.losses.list()
    if found and not yes:
        for loss in found:
            session.err.print(loss_text(loss))
        count = sum(loss.count for loss in found if not loss.stream)
        events = f"the loss of {count:,} events for given? What only the index has of them is gone then."
        question = f"Take {events if count else 'these losses for given?'}"
        session.confirm(question, yes)
    session.show(crucible.losses.accept(), _accepted_view)


def loss_text(loss: Loss) -> Text:
    if loss.stream:
        lost = f"{loss.count:,} messages" if loss.count else f"{loss.bytes:,} bytes that JetStream cannot read,"
        where = {"end": "at the end of", "log": "of the former"}.get(loss.kind, "of")
        sequences = f": sequences {loss.first} to {loss.last}" if loss.count else ""
        return Text(f"{lost} {where} {loss.stream}{sequences}, noticed {loss.found_at}")
    where = {"end": "at the end of the log", "log": "of a log that is gone"}.get(loss.kind, "of the log")
    return Text(f"{loss.count:,} events {where}: sequences {loss.first} to {loss.last}, noticed {loss.found_at}")


def _accepted_view(losses: Sequence[Loss]) -> RenderableType:
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
    """The services' health, a table of all handlers, and one line with the next step."""
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
