"""Appends of many events: the elements of an array as they arrive, chunks that one request to `events` can carry, and
an outcome for each event."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from crucible_core.decode import malformed, steps, unescaped
from crucible_core.errors import (
    CrucibleError,
    FieldError,
    InvalidError,
    LimitedError,
    MalformedError,
    TooLargeError,
    UnavailableError,
    from_problem,
    untried,
)
from crucible_core.limits import ATOMIC_EVENTS, BATCH_BYTES, REQUEST_EVENTS
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent
from crucible_gateway.body.events import MAX_SENT_BYTES, Origin, SizedEvent, too_many
from crucible_gateway.problems import document
from crucible_kit.tasks import Turn

Append = Callable[[AppendRequest], Awaitable[AppendReply]]

CHUNK_EVENTS = 500
_ENVELOPE_BYTES = 512
"""About the bytes that an event's own fields may add to its payload on the way."""
_SLICE = 16 * 1024
"""Bytes that are split before others have a turn: a few milliseconds, whatever is in them."""
_LEVELS = 100
"""Deeper than any event may be. An element that is deeper yet ends the request."""
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_OPENING, _CLOSING, _QUOTE, _COMMA = ord("["), b"]}", ord('"'), ord(",")
_anything = msgspec.json.Decoder(msgspec.Raw)


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
        self._outage: UnavailableError | LimitedError | None = None
        self._committing: asyncio.Task[None] | None = None

    async def add(self, size: int, event: NewEvent | CrucibleError) -> None:
        size += _ENVELOPE_BYTES
        if self._waiting and (len(self._waiting) >= CHUNK_EVENTS or self._bytes + size > BATCH_BYTES):
            await self._flush()
        if self._position >= REQUEST_EVENTS:
            await self._flush()
            raise too_many()
        if isinstance(event, NewEvent):
            event = self._apply(event)
        self._waiting.append(event)
        self._bytes += size if isinstance(event, NewEvent) else 0
        self._position += 1

    def _apply(self, event: NewEvent) -> NewEvent | CrucibleError:
        try:
            return self._origin.apply(event, self._position)
        except CrucibleError as error:
            return error.as_value()

    async def end(self) -> bytes:
        """The answer's body. Raises what was away, or too much, where nothing was committed because of it."""
        await self._flush()
        await self.settle()
        if self._outage is not None and not self._committed:
            raise from_problem(self._outage.problem())
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
        if self._outage is not None:
            # What was away a moment ago is not asked again for each chunk of a long body.
            return [untried(self._outage) for _ in events]
        if not events:
            return []
        try:
            reply = await self._append(AppendRequest(events=events))
        except CrucibleError as error:
            if isinstance(error, UnavailableError | LimitedError):
                self._outage = error
            return [error.as_value() for _ in events]
        outcomes = [outcome(appended) for appended in reply.results]
        # Where one has to come again, so do all that come after the chunk: those of its entity would be before it.
        self._outage = next((each for each in outcomes if isinstance(each, UnavailableError | LimitedError)), None)
        return outcomes


async def append_each(append: Append, origin: Origin, events: AsyncIterator[SizedEvent]) -> bytes:
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


async def append_all(append: Append, origin: Origin, events: AsyncIterator[SizedEvent]) -> bytes:
    """All or none; the answer's body. Raises the errors of every event that is refused, with its position."""
    kept: list[NewEvent] = []
    errors: list[FieldError] = []
    total = position = 0
    turn = Turn()
    async for size, event in events:
        if turn.over:
            await turn.pass_on()
        total += size + _ENVELOPE_BYTES
        if position >= ATOMIC_EVENTS or total > BATCH_BYTES:
            raise TooLargeError(f"an atomic batch may have {ATOMIC_EVENTS} events and about {BATCH_BYTES} bytes")
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
        raise _from_root(error) from None
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


def _from_root(error: CrucibleError) -> CrucibleError:
    """The same error with paths from the root of what the client sent, an array, not of the request made of it."""
    root = "events."
    errors = [msgspec.structs.replace(each, path=each.path.removeprefix(root)) for each in error.errors]
    return type(error)(error.detail.removeprefix(root), errors=errors, **error.extra)


def _nested(levels: int) -> bytes:
    """The pattern of an array or object up to so many levels deep; like all here, it never backtracks."""
    pattern = b""
    for _ in range(levels):
        pattern = rb'[\[{](?:[^"\[\]{}]++|' + _STRING + (b"|" + pattern if pattern else b"") + rb")*+[\]}]"
    return pattern


_WHOLE = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + b"|" + _nested(_LEVELS) + rb")*+", re.DOTALL)
"""All that is complete up to the next comma, or to the bracket that closes what it stands in."""


async def elements(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The elements of a JSON array, undecoded. One that is too long for an event is cut just past the limit, so that it
    is refused and never held whole. Raises MalformedError where the body is no array, or ends too early."""
    splitter = Splitter()
    async for piece in pieces:
        for start in range(0, len(piece), _SLICE):
            for element in splitter.feed(piece[start : start + _SLICE]):
                yield element
            await asyncio.sleep(0)
    splitter.end()


class Splitter:
    """The state of reading an array: the depth of brackets, and the element that has begun."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._begun = bytearray()
        self._left = b""
        self._count = 0
        self._ended = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The elements that end in this piece of the body."""
        data, self._left = self._left + piece, b""
        found: list[bytes] = []
        position = start = self._begin(data) if self._depth == 0 else 0
        if self._in_string:
            position = self._end_string(data)
        if self._depth > 1 and not self._in_string and not self._stays_inside(data, position):
            position = self._leave(data, position)
        while self._depth == 1 and not self._in_string:
            position = _end_of_whole(data, position)
            if position == len(data):
                break
            kind = data[position]
            position += 1
            if kind == _COMMA or kind in _CLOSING:
                self._depth -= kind != _COMMA
                self._hold(data, start, position - 1)
                self._finish_element(found, last=kind != _COMMA)
                start = position
            elif kind == _QUOTE:
                self._open_string(data)
            else:
                self._depth += 1
                if not self._stays_inside(data, position):
                    raise _too_deep()
        if self._ended and data[start:].strip():
            raise MalformedError("body is not JSON: trailing characters")
        self._hold(data, start, len(data) - len(self._left))
        return found

    def end(self) -> None:
        """Raises MalformedError where the array has not ended."""
        if not self._ended:
            raise MalformedError("body is not JSON: it ends too early")

    def _begin(self, data: bytes) -> int:
        """The start of the array's first element; the end of the data where there is no array yet, or no more."""
        before = len(data) - len(data.lstrip())
        if before == len(data):
            return before
        if self._ended:
            raise MalformedError("body is not JSON: trailing characters")
        if data[before] != _OPENING:
            raise MalformedError("body is not JSON: an array was expected")
        self._depth = 1
        return before + 1

    def _stays_inside(self, data: bytes, position: int) -> bool:
        """True if the element, in which the data goes on, does not end in it either. Then its depth is that of the
        data's end."""
        rest = unescaped(data[position:])
        walk = steps(rest)
        if self._depth + min(itertools.accumulate(walk), default=0) < 2:
            return False
        self._depth += sum(walk)
        if rest.count(b'"') % 2:
            self._open_string(data)
        return True

    def _leave(self, data: bytes, position: int) -> int:
        """The end of the element that ends in the data."""
        while self._depth > 1:
            position = _end_of_whole(data, position)
            if data[position] in _CLOSING:
                self._depth -= 1
            elif data[position] != _COMMA:
                raise _too_deep()
            position += 1
        return position

    def _open_string(self, data: bytes) -> None:
        """The data ends inside a string. A lone backslash there belongs to what comes next."""
        self._in_string = True
        if (len(data) - len(data.rstrip(b"\\"))) % 2:
            self._left = b"\\"

    def _end_string(self, data: bytes) -> int:
        match = _REST_OF_STRING.match(data)
        assert match is not None
        self._in_string = not match[1]
        if self._in_string:
            self._left = data[match.end() :]
        return match.end()

    def _hold(self, data: bytes, start: int, end: int) -> None:
        free = MAX_SENT_BYTES + 1 - len(self._begun)
        if free > 0:
            self._begun += memoryview(data)[start : min(end, start + free)]

    def _finish_element(self, found: list[bytes], last: bool) -> None:
        element = bytes(self._begun).strip()
        self._begun.clear()
        self._ended = last
        self._count += 1
        if last and self._count == 1 and not element:
            return
        if len(element) <= MAX_SENT_BYTES:
            try:
                _anything.decode(element)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise malformed(error, "body") from None
        found.append(element)


def _end_of_whole(data: bytes, position: int) -> int:
    match = _WHOLE.match(data, position)
    assert match is not None
    return match.end()


def _too_deep() -> MalformedError:
    return MalformedError(f"body has an element that is nested deeper than {_LEVELS} levels")
