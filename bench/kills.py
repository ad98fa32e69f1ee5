"""Two replicas of every role under load, each killed (SIGKILL) and started again in turn.

What was accepted is counted in the log, its runs and deliveries at their endpoints."""

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import httpx
import msgspec

from bench.endpoints import Endpoints, endpoints
from bench.floors import server
from bench.replicas import KEY, ROLES, Cluster, cluster
from bench.running import CRUCIBLE, Row, free_base
from crucible_core.subjects import Names
from crucible_kit.nats.bus import open_bus
from crucible_kit.nats.reader import read

SECONDS = 60.0
PLAIN, JUDGED = "Custom.Plain", "Custom.Judged"
TYPES = (PLAIN, JUDGED, PLAIN, JUDGED, PLAIN)
"""Of each writer that sends its own ids; each is an entity, and so a key within which order holds."""
REACTIONS = ("every", "ordered", "posts")
"""The endpoints that every such event comes to: a webhook's, that of one with a single place, a hook's."""
HOOKS = ("emits", "posts")
LOST = "LOST"
"""The word of the table on what is not as it must be."""
_PAUSE_S = 0.02
_SETTLE_S = 90.0
_AGAIN = frozenset({429, 503})

Body = dict[str, Any]
Log = list[tuple[int, Body]]
Over = Callable[[int, float], bool]


class Ledger:
    """What the writers were told, by id, key or content."""

    def __init__(self) -> None:
        self.accepted: dict[str, int] = {}
        self.denied: set[str] = set()
        self.keyed: dict[int, int] = {}
        self.texts: list[str] = []
        """Of memories, and of notes."""
        self.unanswered = 0
        self.longest_s = 0.0


class Client:
    """Sends through one gateway, and through the other whenever that does not answer."""

    def __init__(self, cluster: Cluster, ledger: Ledger) -> None:
        self._urls = itertools.cycle(cluster.gateways)
        self._ledger = ledger
        self._http = httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=20)

    async def post(self, path: str, body: Body, key: str | None = None) -> httpx.Response:
        """Again and again, until it is told what has become of it."""
        headers = {"Idempotency-Key": key} if key else {}
        began = time.monotonic()
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await self._http.post(f"{next(self._urls)}/api/v1/{path}", json=body, headers=headers)
                if answer.status_code not in _AGAIN:
                    self._ledger.longest_s = max(self._ledger.longest_s, time.monotonic() - began)
                    return answer
            self._ledger.unanswered += 1
            await asyncio.sleep(0.02)

    async def get(self, path: str, **params: Any) -> Body:
        for url in itertools.islice(self._urls, 10):
            with contextlib.suppress(httpx.HTTPError):
                answer = await self._http.get(f"{url}/api/v1/{path}", params=params)
                if answer.status_code not in _AGAIN:
                    return dict(answer.raise_for_status().json())
            await asyncio.sleep(0.5)
        raise TimeoutError(f"no answer to {path}")

    async def close(self) -> None:
        await self._http.aclose()


# ---- the load --------------------------------------------------------------------------------------------------------


async def _register(client: Client, ends: Endpoints) -> None:
    filters = [{"event_type": PLAIN}, {"event_type": JUDGED}]
    for name, places in (("every", 8), ("ordered", 1)):
        options = {"concurrency": places, "retry_delays_s": [0.5] * 10}
        wanted = {"name": name, "url": f"{ends.url}/slow/{name}", "event_filters": filters, "options": options}
        _made(await client.post("webhooks", wanted))
    seen = '{"payload": {**event["payload"], "seen": True}}'
    judge = f'{{"deny": "every third"}} if event["payload"].get("n", 0) % 3 == 2 else {seen}'
    header = {"X-Crucible-Event-Id": "{{event.id}}"}
    posting = {"type": "HTTP", "method": "POST", "url": f"{ends.url}/slow/posts", "headers": header}
    await _hook(client, "judges", "Pre", ["Judged"], {"type": "Script", "script": judge})
    emitting = {"type": "Script", "script": 'emit("Custom.Emitted", {})'}
    await _hook(client, "emits", "Post", ["Plain", "Judged"], emitting)
    await _hook(client, "posts", "Post", ["Plain", "Judged"], posting)


async def _hook(client: Client, name: str, timing: str, events: Sequence[str], action: Body) -> None:
    trigger = {"timing": timing, "events": [{"type": "Custom", "event": event} for event in events]}
    retry = {"max_attempts": 10, "backoff": "fixed"}
    options = {} if timing == "Pre" else {"retry": retry, "timeout_ms": 5000}
    _made(await client.post("hooks", {"name": name, "trigger": trigger, "action": action, "options": options}))


def _made(answer: httpx.Response) -> Body:
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


async def _numbered(client: Client, ledger: Ledger, key: str, type: str, ending: asyncio.Event) -> None:
    """One event after another, with ids of its own."""
    for n in itertools.count():
        if ending.is_set():
            return
        id = f"evt_{key}_{n:06d}"
        answer = await client.post("events", {"type": type, "payload": {"key": key, "n": n}, "id": id, "entity": key})
        if answer.status_code == 422 and type == JUDGED:
            ledger.denied.add(id)
        else:
            ledger.accepted[id] = _made(answer)["sequence"]
        await asyncio.sleep(_PAUSE_S)


async def _keyed(client: Client, ledger: Ledger, ending: asyncio.Event) -> None:
    """Events of which only their idempotency keys say that they are the same."""
    for n in itertools.count():
        if ending.is_set():
            return
        answer = await client.post("events", {"type": "Custom.Keyed", "payload": {"n": n}}, f"keyed {n}")
        ledger.keyed[n] = _made(answer)["sequence"]
        await asyncio.sleep(_PAUSE_S)


async def _memories(client: Client, ledger: Ledger, ending: asyncio.Event) -> None:
    """Memories over the API, and notes as `crucible watch` tells of them."""
    for n in itertools.count():
        if ending.is_set():
            return
        _made(await client.post("memory", {"content": f"memory {n}"}, f"memory {n}"))
        note = f"notes/{n}.md"
        body = {"type": "File.Created", "payload": {"path": note, "content": f"note {n}"}, "id": f"evt_note_{n:06d}"}
        _made(await client.post("events", body))
        ledger.texts += [f"memory {n}", f"note {n}"]
        await asyncio.sleep(5 * _PAUSE_S)


async def _kill(cluster: Cluster, over: Over) -> int:
    """Each in turn, the next one once the last is ready again: one of each role is always there."""
    began = time.monotonic()
    for count, replica in enumerate(itertools.cycle(cluster.replicas)):
        if over(count, time.monotonic() - began):
            return count
        await asyncio.sleep(random.uniform(0.1, 0.8))
        await replica.kill()
        await asyncio.sleep(random.uniform(0.0, 0.3))
        await replica.start()
        await replica.until_ready()
    raise AssertionError("it goes on for ever")


# ---- what has become of it -------------------------------------------------------------------------------------------


class Found:
    """The log, and what has arrived."""

    def __init__(self, log: Log, ends: Endpoints) -> None:
        self.log = log
        self.queried: list[int] = []
        self.memories = 0
        self.texts: list[str] = []
        self.wanted = [event for _, event in log if _type(event) in (PLAIN, JUDGED)]
        self.arrived = {name: [id for at, id, _ in ends.arrivals() if at == name] for name in REACTIONS}
        self.runs = Counter(
            (event["data"]["payload"]["hook"], event["data"]["payload"]["event_id"])
            for _, event in log
            if _type(event) == "Hook.Executed" and event["data"]["payload"]["hook"] in HOOKS
        )
        emitted = [event["metadata"] for _, event in log if _type(event) == "Custom.Emitted"]
        self.emitted = Counter(metadata["causation_id"] for metadata in emitted)
        self.failed = [event["data"]["payload"] for _, event in log if _type(event) == "Hook.Failed"]

    def missed(self) -> dict[str, int]:
        ids = [event["metadata"]["id"] for event in self.wanted]
        return {
            "runs": sum(self.runs[hook, id] == 0 for hook in HOOKS for id in ids),
            "effects": sum(self.emitted[id] == 0 for id in ids),
            "deliveries": sum(len(set(ids) - set(self.arrived[name])) for name in REACTIONS),
        }

    def places(self) -> dict[str, list[int]]:
        """By key, the sequences of its events in the order in which they first arrived at the ordered webhook."""
        known = {event["metadata"]["id"]: (event["metadata"]["entity"], sequence) for sequence, event in self.log}
        found: dict[str, list[int]] = {}
        for id in dict.fromkeys(self.arrived["ordered"]):
            key, sequence = known[id]
            found.setdefault(key, []).append(sequence)
        return found


def _type(event: Body) -> str:
    return f"{event['type']}.{event['data']['event']}"


async def _log(cluster: Cluster) -> Log:
    log: Log = []
    async with open_bus(cluster.nats_url, Names()) as bus, contextlib.aclosing(read(bus, Names().events)) as batches:
        async for messages in batches:
            if not messages:
                break
            log += [(message.sequence, msgspec.json.decode(message.data)) for message in messages]
    return log


async def _queried(client: Client, last: int) -> list[int]:
    """The sequences of all that the index answers."""
    found: list[int] = []
    query: Body = {"limit": 1000, "min_sequence": last}
    while True:
        page = await client.get("events", **query)
        found += [event["sequence"] for event in page["events"]]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


async def _look(cluster: Cluster, client: Client, ends: Endpoints, ledger: Ledger) -> Found:
    """Once nothing is missing any more, or it has taken too long."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        log = await _log(cluster)
        found = Found(log, ends)
        found.memories = (await client.get("memory/status"))["memories"]
        complete = not any(found.missed().values()) and found.memories >= len(ledger.texts)
        if complete or time.monotonic() > deadline:
            found.queried = await _queried(client, log[-1][0])
            found.texts = [await _remembered(client, text) for text in ledger.texts]
            return found
        await asyncio.sleep(0.5)


async def _remembered(client: Client, text: str) -> str:
    """The text of the memory that fits best."""
    fitting = _made(await client.post("memory/query", {"text": text, "limit": 1}))["memories"]
    return str(fitting[0]["content"]) if fitting else ""


def _doctor(cluster: Cluster) -> str:
    """What `crucible doctor` has to complain of."""
    environ = os.environ | {"CRUCIBLE_URL": cluster.gateways[0], "CRUCIBLE_API_KEY": KEY}
    done = subprocess.run([CRUCIBLE, "doctor"], capture_output=True, text=True, timeout=60, env=environ, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


# ---- the table -------------------------------------------------------------------------------------------------------


def run() -> list[Row]:
    return measured(lambda count, seconds: seconds > SECONDS)


def measured(over: Over) -> list[Row]:
    """`over` says of a number of kills, and of the seconds that they took, whether it is enough."""
    with server() as nats_url, endpoints(free_base() + 7) as ends:
        return asyncio.run(_measured(nats_url, ends, over))


async def _measured(nats_url: str, ends: Endpoints, over: Over) -> list[Row]:
    ledger = Ledger()
    async with cluster(nats_url) as replicas, contextlib.AsyncExitStack() as stack:
        clients = [Client(replicas, ledger) for _ in range(len(TYPES) + 3)]
        for client in clients:
            stack.push_async_callback(client.close)
        await _register(clients[0], ends)
        began = time.monotonic()
        async with _writing(clients[1:], ledger):
            kills = await _kill(replicas, over)
        took = time.monotonic() - began
        await replicas.settled()
        found = await _look(replicas, clients[0], ends, ledger)
        settled = time.monotonic() - began - took
        complaints = await asyncio.to_thread(_doctor, replicas)
    return _rows(ledger, found, kills, took, complaints, settled)


@contextlib.asynccontextmanager
async def _writing(clients: Sequence[Client], ledger: Ledger) -> AsyncIterator[None]:
    """Writers of every kind; those that are in the middle of something end it."""
    ending = asyncio.Event()
    keyed, memories, *others = clients
    async with asyncio.TaskGroup() as group:
        for n, (client, type) in enumerate(zip(others, TYPES, strict=True)):
            group.create_task(_numbered(client, ledger, f"key{n}", type, ending))
        group.create_task(_keyed(keyed, ledger, ending))
        group.create_task(_memories(memories, ledger, ending))
        try:
            yield
        finally:
            ending.set()


def _rows(ledger: Ledger, found: Found, kills: int, took: float, complaints: str, settled: float) -> list[Row]:
    places = {event["metadata"]["id"]: sequence for sequence, event in found.log}
    keyed = Counter(event["data"]["payload"]["n"] for _, event in found.log if _type(event) == "Custom.Keyed")
    entities = [event["metadata"]["id"] for event in found.wanted]
    again = {name: len(ids) - len(set(ids)) for name, ids in found.arrived.items()}
    missed = found.missed()
    return [
        _row("kills of two replicas of each of", f"{kills} in {took:.0f} s: {', '.join(ROLES)}"),
        _row("events accepted", len(ledger.accepted) + len(ledger.keyed) + len(ledger.texts)),
        _row("requests sent again", ledger.unanswered),
        _row("longest until an answer", f"{ledger.longest_s:.1f} s"),
        _row("until all had arrived", f"{settled:.1f} s"),
        _row("accepted events lost", sum(places.get(id) != place for id, place in ledger.accepted.items()), 0),
        _row("  with a key lost, or there twice", sum(keyed[n] != 1 for n in ledger.keyed), 0),
        _row("events there twice", len(found.log) - len(places), 0),
        _row("denied events there", len(ledger.denied & places.keys()), 0),
        _row("events that a query does not show", len({at for at, _ in found.log} ^ set(found.queried)), 0),
        _row("keys out of order in the log", _disorder(entities), 0),
        _row("runs missed", missed["runs"], 0),
        _row("runs told twice", sum(count - 1 for count in found.runs.values()), 0),
        _row("runs failed", len(found.failed), 0),
        _row("events of a script missed", missed["effects"], 0),
        _row("events of a script there twice", sum(count - 1 for count in found.emitted.values()), 0),
        _row("deliveries missed", missed["deliveries"], 0),
        _row("keys out of order at the ordered webhook", sum(at != sorted(at) for at in found.places().values()), 0),
        _row("memories lost", len(set(ledger.texts) - set(found.texts)), 0),
        _row("memories there twice", found.memories - len(ledger.texts), 0),
        _row("doctor complains", complaints or "no", "no"),
        _row("attempts", sum(map(len, found.arrived.values()))),
        _row("attempts made twice", ", ".join(f"{name} {count}" for name, count in again.items())),
    ]


def _disorder(ids: Iterable[str]) -> int:
    """How many keys have an event before one of theirs that was sent before it."""
    last: dict[str, str] = {}
    wrong = set()
    for id in ids:
        key = id.rpartition("_")[0]
        if id < last.get(key, ""):
            wrong.add(key)
        last[key] = id
    return len(wrong)


def _row(what: str, value: object, wanted: object = None) -> Row:
    good = "" if wanted is None else "ok" if value == wanted else LOST
    shown = f"{value:,}" if isinstance(value, int) else value
    return {"what": what, "crucible": shown, "wanted": "" if wanted is None else wanted, "": good}
