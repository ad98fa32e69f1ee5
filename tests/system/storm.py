"""Writers of every kind that go on whatever is killed, and the ledger of what they were told."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from .conftest import Stack

BATCH = 20
SHARED = ("mem_stormy", "mem_windy")
"""Entities that several writers change at once, each change with `expected_sequence`."""
_PAUSE_S = 0.05
_OPEN = frozenset({429, 503})
"""Problems after which it is open what was committed: the same request is sent again."""
_CONFLICT = 409

Body = dict[str, Any]


class Ledger:
    """What was sent, and what became of it by the answers."""

    def __init__(self) -> None:
        self.accepted: dict[str, int] = {}
        """By id, the sequence that was answered."""
        self.open: set[str] = set()
        """Ids that their writer gave up while nobody had told it what had become of them."""
        self.refused: set[str] = set()
        self.bases: dict[str, int] = {}
        """By id, the sequence that was expected of a shared entity, for what was accepted."""
        self.ambiguous = 0
        """Requests without an outcome for all of their events."""
        self.outages: list[tuple[float, float, str]] = []
        """(seconds from the first attempt to the acknowledgement, when that was, which writer), the longer ones."""
        self.failures: list[BaseException] = []

    def accept(self, event: str, sequence: int) -> None:
        first = self.accepted.setdefault(event, sequence)
        assert first == sequence, f"{event} was first answered with {first}, then with {sequence}"

    def longest(self) -> tuple[float, float, str]:
        return max(self.outages, default=(0.0, 0.0, "nobody"))


class Writer:
    """One client: its own connection, and its own ids."""

    def __init__(self, name: str, stack: Stack, ledger: Ledger, stop: threading.Event) -> None:
        self.name = name
        self.ledger = ledger
        self.stop = stop
        self.http = stack.http()
        self._number = -1
        self._began = 0.0

    def fresh(self) -> int:
        """The next number; what it is for begins now."""
        self._number += 1
        self._began = time.monotonic()
        return self._number

    def tick(self, number: int) -> Body:
        return {
            "type": "Custom.Tick",
            "payload": {"n": number},
            "id": f"evt_{self.name}_{number:06d}",
            "entity": self.name,
        }

    def send(self, **request: Any) -> httpx.Response | None:
        """One attempt. None: it is open what has become of it."""
        try:
            answer = self.http.post("/api/v1/events", **request)
        except httpx.HTTPError:
            answer = None
        if answer is None or answer.status_code in _OPEN:
            assert answer is None or int(answer.headers["Retry-After"]) >= 1
            self.ledger.ambiguous += 1
            time.sleep(_PAUSE_S)
            return None
        assert answer.status_code in (200, 201, _CONFLICT), answer.text
        return answer

    def until_answered(self, **request: Any) -> httpx.Response:
        while (answer := self.send(**request)) is None:
            pass
        return answer

    def accept(self, event: str, sequence: int) -> None:
        self.ledger.accept(event, sequence)
        waited = time.monotonic() - self._began
        if waited > 0.5:
            self.ledger.outages.append((waited, time.monotonic(), self.name))


Life = Callable[[Writer], None]


def singles(writer: Writer) -> None:
    """One event after another, of one entity."""
    while not writer.stop.is_set():
        body = writer.tick(writer.fresh())
        answer = writer.until_answered(json=body)
        writer.accept(body["id"], answer.json()["sequence"])


def rings(writer: Writer) -> None:
    """What a webhook waits for, a few times a second."""
    while not writer.stop.wait(0.1):
        body = writer.tick(writer.fresh()) | {"type": "Custom.Ring"}
        writer.accept(body["id"], writer.until_answered(json=body).json()["sequence"])


def lines(writer: Writer) -> None:
    """NDJSON: each event for itself, and the whole batch again until all of it has been accepted."""
    while not writer.stop.is_set():
        bodies = [writer.tick(writer.fresh()) for _ in range(BATCH)]
        content = b"\n".join(map(msgspec.json.encode, bodies))
        while True:
            answer = writer.until_answered(content=content, headers={"Content-Type": "application/x-ndjson"})
            results = answer.json()["results"]
            for body, result in zip(bodies, results, strict=True):
                if "sequence" in result:
                    writer.accept(body["id"], result["sequence"])
                else:
                    assert result["error"]["status"] in _OPEN, result
            if answer.json()["committed"] == BATCH:
                break
            writer.ledger.ambiguous += 1
            time.sleep(_PAUSE_S)


def wholes(writer: Writer) -> None:
    """Arrays, all or nothing."""
    while not writer.stop.is_set():
        bodies = [writer.tick(writer.fresh()) for _ in range(BATCH)]
        answer = writer.until_answered(json=bodies, params={"atomic": "true"})
        assert answer.status_code == 200, answer.text
        sequences = [result["sequence"] for result in answer.json()["results"]]
        assert sequences == list(range(sequences[0], sequences[0] + BATCH)), sequences
        for body, sequence in zip(bodies, sequences, strict=True):
            writer.accept(body["id"], sequence)


def careless(writer: Writer) -> None:
    """Sends nothing twice: what has become of an event when nobody answers, it never hears."""
    while not writer.stop.is_set():
        body = writer.tick(writer.fresh())
        del body["entity"]
        if (answer := writer.send(json=body)) is None:
            writer.ledger.open.add(body["id"])
        else:
            writer.accept(body["id"], answer.json()["sequence"])


def changes(writer: Writer) -> None:
    """Changes the shared entities in turn, each on the version that it knows; a conflict tells a newer one."""
    known = dict.fromkeys(SHARED, 0)
    while not writer.stop.is_set():
        number = writer.fresh()
        entity = SHARED[number % len(SHARED)]
        body: Body = {
            "type": "Memory.Tagged",
            "payload": {"id": entity, "tag": "#x"},
            "expected_sequence": known[entity],
        }
        body["id"] = f"evt_{writer.name}_{number:06d}"
        answer = writer.until_answered(json=body)
        if answer.status_code == _CONFLICT:
            writer.ledger.refused.add(body["id"])
            known[entity] = answer.json()["current_sequence"]
        else:
            writer.ledger.bases[body["id"]] = body["expected_sequence"]
            known[entity] = answer.json()["sequence"]
            writer.accept(body["id"], known[entity])


LIVES: dict[str, Life] = {
    "single1": singles,
    "single2": singles,
    "line": lines,
    "whole": wholes,
    "careless": careless,
    "change1": changes,
    "change2": changes,
    "change3": changes,
    "ring": rings,
}


def start(stack: Stack, ledger: Ledger, stop: threading.Event) -> list[threading.Thread]:
    """One thread for each writer. A failed assertion ends its writer, and is kept in the ledger."""

    def live(name: str, life: Life) -> None:
        writer = Writer(name, stack, ledger, stop)
        try:
            with writer.http:
                life(writer)
        except BaseException as error:
            ledger.failures.append(error)

    threads = [threading.Thread(target=live, args=item, daemon=True) for item in LIVES.items()]
    for thread in threads:
        thread.start()
    return threads
