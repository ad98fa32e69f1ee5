"""Appending many events: in chunks that one request to `events` can carry, each event with an outcome of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from crucible_core.errors import (
    CrucibleError,
    FieldError,
    InvalidError,
    LimitedError,
    TooLargeError,
    UnavailableError,
    from_problem,
    untried,
)
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent
from crucible_kit.tasks import Turn

from .intake import MAX_EVENTS, Origin, Taken, too_many
from .problems import document

Append = Callable[[AppendRequest], Awaitable[AppendReply]]

CHUNK_EVENTS = 500
CHUNK_BYTES = 4 * 1024 * 1024
MAX_ATOMIC = 1000
_ENVELOPE_BYTES = 512
"""About the bytes that an event's own fields may add to its payload on the way."""


class Result(msgspec.Struct, omit_defaults=True):
    """One event of a batch: where it is in the log, or the problem that refused it."""

    id: str | None = None
    sequence: int | None = None
    type: str | None = None
    correlation_id: str | None = None
    duplicate: bool = False
    error: msgspec.Raw | None = None


class Committed(msgspec.Struct):
    """`committed` counts the results that have a sequence, duplicates among them."""

    committed: int
    results: list[Result]


class Batch:
    """The events that wait for their chunk, and the outcomes so far, encoded chunk by chunk: there may be 100,000."""

    def __init__(self, append: Append, origin: Origin) -> None:
        self._append = append
        self._origin = origin
        self._waiting: list[NewEvent | CrucibleError] = []
        self._bytes = 0
        self._position = 0
        self._results: list[bytes] = []
        self._committed = 0
        self._away: UnavailableError | LimitedError | None = None
        self._committing: asyncio.Task[None] | None = None

    async def add(self, size: int, event: NewEvent | CrucibleError) -> None:
        size += _ENVELOPE_BYTES
        if self._waiting and (len(self._waiting) >= CHUNK_EVENTS or self._bytes + size > CHUNK_BYTES):
            await self._flush()
        if self._position >= MAX_EVENTS:
            await self._flush()
            raise too_many()
        if isinstance(event, NewEvent):
            event = self._applied(event)
        self._waiting.append(event)
        self._bytes += size if isinstance(event, NewEvent) else 0
        self._position += 1

    def _applied(self, event: NewEvent) -> NewEvent | CrucibleError:
        try:
            return self._origin.apply(event, self._position)
        except CrucibleError as error:
            return error.as_value()

    async def end(self) -> bytes:
        """The answer's body. Raises what was away, or too much, where nothing was committed because of it."""
        await self._flush()
        await self.settle()
        if self._away is not None and not self._committed:
            raise from_problem(self._away.problem())
        body = [b'{"committed":%d,"results":[' % self._committed]
        for result in self._results:
            body += (result, b",")
        body[max(1, len(body) - 1) :] = [b"]}"]
        return b"".join(body)

    async def settle(self) -> int:
        """Waits for what is being committed; how many events are."""
        if self._committing is not None:
            await self._committing
        return self._committed

    async def _flush(self) -> None:
        """Commits a chunk while the next one is read. One at a time: they stay in order."""
        await self.settle()
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        self._committing = asyncio.create_task(self._commit(waiting))

    async def _commit(self, waiting: list[NewEvent | CrucibleError]) -> None:
        outcomes = iter(await self._outcomes([event for event in waiting if isinstance(event, NewEvent)]))
        results = [event if isinstance(event, CrucibleError) else next(outcomes) for event in waiting]
        self._committed += sum(isinstance(result, Result) for result in results)
        if results:
            self._results.append(b",".join(_encode(result, self._origin.request_id) for result in results))

    async def _outcomes(self, events: list[NewEvent]) -> list[Result | CrucibleError]:
        if self._away is not None:
            # What was away a moment ago is not asked again for each chunk of a long body.
            return [untried(self._away) for _ in events]
        if not events:
            return []
        try:
            reply = await self._append(AppendRequest(events=events))
        except CrucibleError as error:
            if isinstance(error, UnavailableError | LimitedError):
                self._away = error
            return [error.as_value() for _ in events]
        outcomes = [outcome(appended) for appended in reply.results]
        # Where one has to come again, so do all that come after the chunk: those of its entity would be before it.
        self._away = next((each for each in outcomes if isinstance(each, UnavailableError | LimitedError)), None)
        return outcomes


async def append_each(append: Append, origin: Origin, events: AsyncIterator[Taken]) -> bytes:
    """Each event for itself; the answer's body. The events come one by one, and are held two chunks at a time.

    Raises what reading them raises; where some are committed by then, the error says how many.
    """
    batch, turn = Batch(append, origin), Turn()
    try:
        async for size, event in events:
            await batch.add(size, event)
            if turn.over:
                await turn.pass_on()
    except CrucibleError as error:
        committed = await batch.settle()
        if committed:
            error.detail += f"; the first {committed} events are committed"
            error.extra["committed"] = committed
        raise
    return await batch.end()


async def append_all(append: Append, origin: Origin, events: AsyncIterator[Taken]) -> bytes:
    """All or none; the answer's body. Raises the errors of every event that is refused, with its position."""
    kept: list[NewEvent] = []
    errors: list[FieldError] = []
    total = position = 0
    turn = Turn()
    async for size, event in events:
        if turn.over:
            await turn.pass_on()
        total += size + _ENVELOPE_BYTES
        if position >= MAX_ATOMIC or total > CHUNK_BYTES:
            raise TooLargeError(f"an atomic batch may have {MAX_ATOMIC} events and about {CHUNK_BYTES} bytes")
        if isinstance(event, CrucibleError):
            if not isinstance(event, InvalidError):
                inside = [_at(position, error) for error in event.errors]
                raise type(event)(f"event {position}: {event.detail}", errors=inside, **event.extra)
            errors += [_at(position, error) for error in event.errors]
        else:
            kept.append(origin.apply(event, position))
        position += 1
    if errors:
        raise InvalidError(f"nothing was committed; {errors[0].path}: {errors[0].message}", errors=errors)
    try:
        reply = await append(AppendRequest(events=kept, atomic=True)) if kept else AppendReply(results=[])
    except CrucibleError as error:
        raise _as_sent(error) from None
    results = [result_of(appended) for appended in reply.results]
    return msgspec.json.encode({"committed": len(results), "results": results})


def result_of(appended: Appended) -> Result:
    """Raises the error of an event that was refused."""
    if appended.error is not None:
        raise from_problem(appended.error)
    return Result(appended.id, appended.sequence, appended.type, appended.correlation_id, appended.duplicate)


def outcome(appended: Appended) -> Result | CrucibleError:
    return result_of(appended) if appended.error is None else from_problem(appended.error)


def _encode(result: Result | CrucibleError, request_id: str | None) -> bytes:
    if isinstance(result, CrucibleError):
        return msgspec.json.encode(Result(error=document(result, request_id)))
    return msgspec.json.encode(result)


def _at(position: int, error: FieldError) -> FieldError:
    return msgspec.structs.replace(error, path=f"{position}.{error.path}" if error.path else str(position))


def _as_sent(error: CrucibleError) -> CrucibleError:
    """The same error with paths from the root of what the client sent, an array, not of the request made of it."""
    root = "events."
    errors = [msgspec.structs.replace(each, path=each.path.removeprefix(root)) for each in error.errors]
    return type(error)(error.detail.removeprefix(root), errors=errors, **error.extra)
