"""A replica of a small service on the work engine: `python replica.py URL PREFIX SECONDS`.

It has the handlers h0 … h19, each of which wants every `Custom.<its name>`. An attempt takes SECONDS, and is one line
on the output: the handler, the sequence of the event, the attempt. An event named `Custom.Deadly` ends the process;
`Custom.Fails` is tried three times. Of the handler CALM, events must be some time apart.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterable, Sequence

import msgspec

from crucible_core.envelope import Event
from crucible_core.position import Position
from crucible_core.subjects import DLV, Names
from crucible_kit.buckets import open_bucket
from crucible_kit.clock import now_ms
from crucible_kit.handlers.engine import Engine
from crucible_kit.handlers.lanes import Job
from crucible_kit.handlers.service import Outcome, Plan
from crucible_kit.nats.bus import open_bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Message
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry

HANDLERS = [f"h{number}" for number in range(20)]
ATTEMPTS = 3
CALM, APART_MS = HANDLERS[-1], 150


class Record(msgspec.Struct):
    job: str
    attempt: int


class Small:
    name, kind = "small", DLV

    def __init__(self, names: Names, seconds: float) -> None:
        self.queue = names.deliveries
        self._names = names
        self._seconds = seconds

    def since(self, shard: int) -> Position | None:
        return self._names.start

    def types(self) -> set[str]:
        return {"Custom.*"}

    def may_want(self, category: str, event: str) -> bool:
        return category == "Custom"

    def plan(self, handler: str) -> Plan | None:
        apart_ms = APART_MS if handler == CALM else 0
        return Plan(concurrency=4, apart_ms=apart_ms) if handler in HANDLERS else None

    def unreadable(self) -> Iterable[str]:
        return ()

    async def reach(self, revision: int) -> None:
        pass

    async def catch_up(self, events: Sequence[Event]) -> None:
        pass

    def match(self, event: Event) -> list[str]:
        return [handler for handler in HANDLERS if self.wants(handler, event)]

    def wants(self, handler: str, event: Event) -> bool:
        return event.data.event == handler or (handler == "h0" and event.data.event in ("Deadly", "Fails"))

    def job_id(self, handler: str, event: Event, stored_ms: int) -> str:
        return f"{handler}-{event.metadata.id}"

    def identify(self, record: bytes) -> tuple[str, int]:
        found = msgspec.json.decode(record, type=Record)
        return found.job, found.attempt

    async def left_of(self, sequence: int) -> Message | None:
        return None

    def held_back(self, first: Job, count: int) -> Outgoing:
        print("held", first.sequence, count, flush=True)
        record = self._outcome(first, None).record
        assert record is not None
        return record

    async def attempt(self, job: Job) -> Outcome:
        print(job.handler, job.sequence, job.attempt, flush=True)
        await asyncio.sleep(self._seconds)
        if job.event.data.event == "Deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        again = job.event.data.event == "Fails" and job.attempt < ATTEMPTS
        return self._outcome(job, now_ms() + 100 if again else None)

    async def again(self, job: Job, record: bytes) -> Outcome:
        return Outcome()

    async def parked(self, job: Job, reason: str) -> Outcome:
        print("parked", job.sequence, reason, flush=True)
        return self._outcome(job, None)

    def _outcome(self, job: Job, retry_at_ms: int | None) -> Outcome:
        subject = self._names.attempt(DLV, job.handler, job.id)
        record = msgspec.json.encode(Record(job.id, job.attempt))
        return Outcome(Outgoing(subject, record, msg_id=f"{job.id}:{job.attempt}"), retry_at_ms)


async def main(url: str, prefix: str, seconds: str) -> None:
    names = Names(prefix)
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    async with open_bus(url, names) as bus:
        engine = Engine(
            bus, await open_bucket(bus, "shards"), Small(names, float(seconds)), Telemetry(), Metrics("small")
        )
        running = asyncio.create_task(engine.run())
        await engine.begun()
        print("ready", flush=True)
        await ending.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
