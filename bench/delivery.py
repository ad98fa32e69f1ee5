"""Webhooks: a burst, one event at a time, one event for many, endpoints that hang, and a worker that is killed.

Endpoints and load have processes of their own (`bench.endpoints`, `bench.generator`); processor time is that of all
processes of the system, NATS included. The floor is a bare aiohttp loop that sends the same requests."""

import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import psutil

from bench.endpoints import Arrival, Endpoints, endpoints
from bench.generator import Generator, Load, send
from bench.running import Row, Running, free_base, running, until

ROUNDS = 3
BURST = 5000
AT_ONCE = 8
"""Places that a webhook has by default, and so the requests that the bare loop has under way."""
Figures = dict[str, float]


def run(only: str = "") -> list[Row]:
    parts: dict[str, Callable[[], list[Row]]] = {
        "burst": burst,
        "quiet": quiet,
        "many": many,
        "stuck": stuck,
        "kill": kill,
    }
    return [row for name, part in parts.items() if only in ("", name) for row in part()]


def burst() -> list[Row]:
    """5,000 POSTs of 512 bytes over 64 connections, one fast endpoint."""

    def measured(stack: Running, ends: Endpoints) -> Figures:
        _webhooks(stack, ends, ["good"])
        before = sum(stack.cpu().values())
        sent = send(Load(BURST, 64, stack.ports["gateway"], stack.key))
        arrivals = _arrived(ends, BURST)
        used = sum(stack.cpu().values()) - before
        waited = [at - sent.posted[id][0] for _, id, at in arrivals]
        accepted = BURST / (sent.ended - sent.began)
        delivered = BURST / (max(at for _, _, at in arrivals) - sent.began)
        ends.forget()
        floor = send(Load(BURST, AT_ONCE, urls=(f"{ends.url}/good",)))
        return {
            "accepted/s": accepted,
            "delivered/s": delivered,
            "ratio": delivered / accepted,
            "median": statistics.median(waited) * 1000,
            "per cpu": BURST / used,
            "bare/s": BURST / (floor.ended - floor.began),
            "bare per cpu": BURST / floor.cpu_s,
        }

    found = _rounds(measured)
    return [
        _row("burst: accepted", found["accepted/s"], "/s"),
        _row("  delivered", found["delivered/s"], "/s", floor=found["bare/s"]),
        _row("  delivered beside accepted", found["ratio"], "", at_least=0.95),
        _row("  POST to arrival, median", found["median"], "ms", at_most=200),
        _row("  deliveries per cpu second", found["per cpu"], "/s", floor=found["bare per cpu"], at_least=700),
    ]


def quiet() -> list[Row]:
    """One POST at a time, 20 a second."""

    def measured(stack: Running, ends: Endpoints) -> Figures:
        _webhooks(stack, ends, ["good"])
        load = Load(200, 1, stack.ports["gateway"], stack.key, rate=20)
        send(Load(20, 1, load.port, load.key, rate=20))
        _arrived(ends, 20)
        ends.forget()
        sent = send(load)
        waited = sorted(at - sent.posted[id][0] for _, id, at in _arrived(ends, 200))
        return {
            "accepted": statistics.median(took for _, took in sent.posted.values()) * 1000,
            "arrived": statistics.median(waited) * 1000,
            "p99": waited[int(len(waited) * 0.99)] * 1000,
        }

    found = _rounds(measured)
    return [
        _row("quiet, 20/s: accepted, median", found["accepted"], "ms", at_most=3),
        _row("  arrived, median", found["arrived"], "ms", at_most=4.5),
        _row("  arrived, p99", found["p99"], "ms", at_most=12),
    ]


def many() -> list[Row]:
    """One event that 1,000 webhooks of 1,000 endpoints want: until the last has arrived."""
    names = [f"e{number}" for number in range(1000)]

    def measured(stack: Running, ends: Endpoints) -> Figures:
        _webhooks(stack, ends, names)
        sent = send(Load(1, 1, stack.ports["gateway"], stack.key))
        last = max(at for _, _, at in _arrived(ends, 1000))
        ends.forget()
        floor = send(Load(1000, 64, urls=tuple(f"{ends.url}/{name}" for name in names)))
        return {"took": (last - sent.began) * 1000, "bare": (floor.ended - floor.began) * 1000}

    found = _rounds(measured)
    return [_row("one event, 1,000 endpoints", found["took"], "ms", floor=found["bare"], ratio_at_most=2)]


def stuck() -> list[Row]:
    """100 good endpoints, each with a type of its own, 200 events a second; then 1,000 that never answer beside them,
    ten for each of these types."""
    types = [f"Custom.T{number}" for number in range(100)]
    good = [f"g{number}" for number in range(100)]

    def p99(stack: Running, ends: Endpoints) -> float:
        load = Load(2000, 20, stack.ports["gateway"], stack.key, rate=200, types=tuple(types))
        sent = send(load)
        waited = sorted(at - sent.posted[id][0] for _, id, at in _arrived(ends, load.count) if id in sent.posted)
        ends.forget()
        return waited[int(len(waited) * 0.99)] * 1000

    def measured(stack: Running, ends: Endpoints) -> Figures:
        _webhooks(stack, ends, good, types)
        without = p99(stack, ends)
        _webhooks(stack, ends, [f"stuck/s{number}" for number in range(1000)], types)
        return {"beside": p99(stack, ends), "without": without}

    found = _rounds(measured)
    return [
        _row("1,000 stuck beside 100 good: p99 of the good", found["beside"], "ms", found["without"], ratio_at_most=1.3)
    ]


def kill() -> list[Row]:
    """SIGKILL of a worker in the middle of the burst: until the next delivery, and until the last of all."""
    rows = []
    for replicas, what, next_at_most in ((1, "by restart", 3.0), (2, "with a second replica", 1.5)):

        def measured(stack: Running, ends: Endpoints, replicas: int = replicas) -> Figures:
            names = [f"k{number}" for number in range(16)]  # of several shards, so that both replicas have some
            _webhooks(stack, ends, names)
            second = _second(stack) if replicas == 2 else None
            time.sleep(3)
            generator = Generator(Load(BURST // len(names), 64, stack.ports["gateway"], stack.key))
            until(lambda: len(ends.arrivals()) > 1000, 60)
            stack.processes()["webhooks"].send_signal(signal.SIGKILL)
            killed = time.time()
            sent = generator.result()
            arrivals = _arrived(ends, len(names) * len(sent.posted), unique=True)
            after = [at for _, _, at in arrivals if at > killed + 0.2]
            if second is not None:
                second.kill()
                second.wait()
            pairs = {(name, id) for name, id, _ in arrivals}
            return {
                "next": _longest_gap([killed, *after], killed + 6),
                "last": max(after) - killed,
                "lost": len(names) * len(sent.posted) - len(pairs),
                "twice": len(arrivals) - len(pairs),
            }

        found = _rounds(measured)
        rows += [
            _row(f"SIGKILL in the burst, {what}: longest silence", found["next"], "s", at_most=next_at_most),
            _row("  until the last", found["last"], "s", at_most=5),
            _row("  lost", found["lost"], "", at_most=0),
            _row("  twice", found["twice"], ""),
        ]
    return rows


def _longest_gap(times: Sequence[float], before: float) -> float:
    ordered = sorted(at for at in times if at < before)
    return max((later - earlier for earlier, later in pairwise(ordered)), default=0.0)


def _second(stack: Running) -> "subprocess.Popen[bytes]":
    """A second process of webhooks beside that of `crucible up`."""
    (stack.data / "second").mkdir()
    token = (stack.data / "nats" / "token").read_text().strip()
    own = {
        "CRUCIBLE_NATS_URL": f"nats://{token}@127.0.0.1:{stack.ports['nats']}",
        "CRUCIBLE_PORT": str(free_base()),
        "CRUCIBLE_DATA_DIR": str(stack.data / "second"),
        "CRUCIBLE_EGRESS_ALLOW": "127.0.0.1",
    }
    return subprocess.Popen([sys.executable, "-m", "crucible_webhooks"], env=os.environ | own)


def _webhooks(stack: Running, ends: Endpoints, names: Sequence[str], types: Sequence[str] = ("Custom.Bench",)) -> None:
    """A webhook for each endpoint, of one of the types in turn."""
    with stack.http() as http:
        for name, type in zip(names, itertools.cycle(types), strict=False):
            wanted = {"name": name, "url": f"{ends.url}/{name}", "event_filters": [{"event_type": type}]}
            assert http.post("/api/v1/webhooks", json=wanted).status_code == 201


def _arrived(ends: Endpoints, count: int, unique: bool = False) -> list[Arrival]:
    """All that has arrived, once it is so many."""

    def enough() -> bool:
        time.sleep(0.2)
        found = ends.arrivals()
        return len({(name, id) for name, id, _ in found} if unique else found) >= count

    until(enough, 180)
    return ends.arrivals()


def _rounds(measured: Callable[[Running, Endpoints], Figures]) -> dict[str, list[float]]:
    """Each round on a stack of its own."""
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        with endpoints(free_base() + 7) as ends, running() as stack:
            for name, value in measured(stack, ends).items():
                found.setdefault(name, []).append(value)
        assert not [child for child in psutil.Process().children() if child.name() == "nats-server"]
    return found


def _row(
    what: str,
    values: Sequence[float],
    unit: str,
    floor: Sequence[float] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    ratio_at_most: float | None = None,
) -> Row:
    """A line of the table: the median of the rounds, their range, and the floor's median."""
    value = statistics.median(values)
    below = statistics.median(floor) if floor else None
    ratio = value / below if below else None
    good = (
        (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (ratio_at_most is None or (ratio or 0) <= ratio_at_most)
    )
    aims = {"≥": at_least, "≤": at_most, "ratio ≤": ratio_at_most}
    return {
        "what": what,
        "crucible": f"{_number(value)} {unit}".rstrip(),
        "range": f"{_number(min(values))} to {_number(max(values))}",
        "floor": f"{_number(below)} {unit}".rstrip() if below else "-",
        "ratio": f"{ratio:.2f}" if ratio else "-",
        "wanted": next((f"{sign} {aim:g}" for sign, aim in aims.items() if aim is not None), ""),
        "": "ok" if good else "MISSED",
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
