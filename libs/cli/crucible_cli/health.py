"""How the installation does, for `crucible doctor`: its processes and its disk where it runs here, what its /readyz
say, and what the log has lost."""

import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from crucible_client import Crucible
from crucible_core.errors import CrucibleError
from crucible_core.limits import storage_reserve
from crucible_core.protocol.losses import Loss
from crucible_core.protocol.memory import MemoryStatus
from crucible_core.protocol.shared import Readiness, Trouble

from .listing import Column, Listing
from .place import running
from .session import Session
from .state import DataDir, UpState
from .summary import clean
from .supervisor import LOOP_DEATHS, LOOP_S, Condition

_ASKED_S = 3.0
_MIB = 1024 * 1024
_GOOD = frozenset({"ready"})
_METRIC = re.compile(rb"^crucible_(index_lag|parked_messages) ([0-9.e+]+)$", re.MULTILINE)
_SHOWN = 5


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


def find_health(session: Session, crucible: Crucible) -> Health:
    """Asks every process that can be asked. Never fails for one that does not answer."""
    up = running(session.data)
    here = up if up is not None and up.url.rstrip("/") == session.place.url else None
    urls = {"gateway": session.place.url}
    if here is not None:
        urls = {name: f"http://127.0.0.1:{port}" for name, port in here.ports.items() if name != "nats"}
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = dict(zip(urls, pool.map(_asked, urls.values()), strict=True))
    conditions = _conditions(session.data) if here is not None else {}
    services = [_service(name, answer, conditions.get(name)) for name, answer in answers.items()]
    if (nats := conditions.get("nats")) is not None:
        services.append(Service("nats", nats.state, _words(nats), nats.restarts))
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


def _asked(url: str) -> tuple[Readiness | None, dict[str, int]]:
    """The answer of a /readyz, with its metrics of interest; nothing where it does not answer."""
    try:
        with httpx.Client(base_url=url, timeout=_ASKED_S) as http:
            readiness = msgspec.json.decode(http.get("/readyz").content, type=Readiness)
            found = _METRIC.findall(http.get("/metrics").content)
    except (httpx.HTTPError, msgspec.DecodeError):
        return None, {}
    return readiness, {name.decode(): int(float(value)) for name, value in found}


def _service(name: str, answer: tuple[Readiness | None, dict[str, int]], condition: Condition | None) -> Service:
    readiness, metrics = answer
    lag, parked = metrics.get("index_lag"), metrics.get("parked_messages")
    words = _words(condition) if condition else ""
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


def _words(condition: Condition) -> str:
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
    for event in memory.latest[:_SHOWN]:
        text.append(f"\n  #{event.sequence}  {clean(event.reason, 200)}")
    return text


def _disk_text(disk: Disk) -> Text:
    free, total, reserve = (size / _MIB for size in (disk.free_bytes, disk.total_bytes, disk.reserve_bytes))
    text = Text(f"disk: {free:,.0f} of {total:,.0f} MiB are free, {reserve:,.0f} MiB are kept free")
    return text.append(f" ({disk.path})", "dim")
