"""Requests between the replicas that run the engine of a service: the count of jobs in a lane, which only its owner
knows, and the wait until every replica knows a registration."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from crucible_core.access import service_principal
from crucible_core.errors import UnavailableError
from crucible_core.protocol.parts import GetRequest, Message
from crucible_core.subjects import shard_of
from crucible_kit.buckets import Bucket
from crucible_kit.handlers.pointers import waiting
from crucible_kit.handlers.service import Service
from crucible_kit.handlers.shards import read_shard, shard_key
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, call, call_all, serve
from crucible_kit.telemetry.spans import Telemetry


class Waiting(Message):
    """Number of jobs that wait in the log for a handler, or are under way."""

    count: int


class Reached(Message):
    """A revision of the registry's bucket."""

    revision: int


async def serve_peers(
    bus: Bus, service: Service, replica: str, in_log: Callable[[str], Awaitable[int]], telemetry: Telemetry
) -> None:
    """Answers until cancelled."""

    async def count(request: GetRequest, context: Context) -> Waiting:
        return Waiting(count=await in_log(request.id))

    async def reached(request: Reached, context: Context) -> Reached:
        await service.reach(request.revision)
        return request

    own = serve(bus, _name(service.name, replica), {"waiting": Endpoint(GetRequest, count)}, telemetry)
    shared = {"reached": Endpoint(Reached, reached, every_replica=True)}
    async with own, serve(bus, _name(service.name), shared, telemetry):
        await asyncio.Event().wait()


async def count_waiting(bus: Bus, shards: Bucket, service: str, kind: str, queue: str, handler: str) -> int:
    """Counts the jobs of a handler that wait, now or for their time, or are under way."""
    count = await waiting(bus, kind, queue, handler)
    entry = await shards.get(shard_key(service, shard_of(handler)))
    if entry is not None:
        owner, request = _name(service, read_shard(entry).owner), GetRequest(id=handler)
        with contextlib.suppress(UnavailableError):  # it has just been killed: another replica takes over
            count += (await call(bus, service_principal(service), owner, "waiting", request, Waiting)).count
    return count


async def reach_all(bus: Bus, service: str, revision: int) -> None:
    """Waits until every replica works with a revision of the registry. An owner that learned of a handler later than of
    an event would miss the event."""
    await call_all(bus, service_principal(service), _name(service), "reached", Reached(revision=revision))


def _name(service: str, replica: str = "") -> str:
    return f"{service}-engine-{replica}" if replica else f"{service}-engine"
