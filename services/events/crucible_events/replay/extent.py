"""Extent of a replay: its range of the log, the subjects to read, and the test of each message."""

import contextlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.envelope import decode
from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.filters.matcher import CompiledFilters, compile_filters
from crucible_core.limits import HANDLER_FILTERS
from crucible_core.position import Position, in_stream
from crucible_core.protocol.parts import TypeFilter
from crucible_core.subjects import Names, token
from crucible_core.times import parse_time
from crucible_core.types.catalogue import Catalogue
from crucible_kit.eventlog import log_end, position_at, position_of
from crucible_kit.nats.bus import Bus, Message

_MOST_SUBJECTS = 20
"""Past so many types whole categories are read."""
_WHOLE = "*"
_MAX_SEQUENCE = 2**63 - 1
_WORDS = ("start", "now")


class Selection(msgspec.Struct, frozen=True):
    """`kinds` are (category, event) tokens of subjects, None to take every message that is read; `filters` is None
    where the type decides alone, so that no event is decoded. `scope` is that of the principal who started the
    replay."""

    subjects: list[str]
    kinds: frozenset[tuple[str, str]] | None
    filters: CompiledFilters | None
    scope: Scope = EVERYTHING

    def picks(self, message: Message) -> bool:
        """Raises `msgspec.DecodeError` for a message that is no event, where that matters."""
        if self.filters is not None:
            decoded = decode(message.data, message.sequence)
            return self.filters.matches(decoded) and self.scope.sees(decoded)
        if self.kinds is None:
            return True
        category, event = message.subject.split(".")[-3:-1]
        return (category, event) in self.kinds or (category, _WHOLE) in self.kinds


def select(
    filters: Sequence[TypeFilter],
    world_id: str | None,
    room_id: str | None,
    names: Names,
    catalogue: Catalogue,
    scope: Scope = EVERYTHING,
) -> Selection:
    """Raises InvalidError with the path of each mistake (`filters.0.event_type`)."""
    if not 1 <= len(filters) <= HANDLER_FILTERS:
        message = f"must have 1 to {HANDLER_FILTERS} filters; without any, every event is replayed"
        raise InvalidError.field("filters", message)
    compiled = compile_filters(filters, at="filters", catalogue=catalogue)
    kinds = _kinds(compiled.types)
    read = kinds
    if kinds is not None and len(kinds) > _MOST_SUBJECTS:
        read = frozenset((category, _WHOLE) for category, _ in kinds)
    subjects = [
        names.events_of(*kind, world=world, room=room)
        for world, room in scope.tokens(world_id, room_id)
        for kind in sorted(read or {(_WHOLE, _WHOLE)})
    ]
    decoded = not scope.everything or any(wanted.filter for wanted in filters)
    return Selection(subjects, None if read == kinds else kinds, compiled if decoded else None, scope)


class Moment(NamedTuple):
    """Unix microseconds."""

    at: int


class Range(NamedTuple):
    """After the first position in the log, up to the second."""

    after: Position
    to: Position


async def resolve(bus: Bus, start: int | str, to: int | str) -> Range:
    """Sequences, times (of the commit), `start` and `now` (the log's end at this moment). Raises InvalidError."""
    begin, end = _parse(start, "from"), _parse(to, "to")
    if end == "start":
        raise InvalidError.field("to", "must be a sequence, a time or now")
    if isinstance(begin, Moment) and isinstance(end, Moment) and begin.at > end.at:
        raise InvalidError.field("from", f"{start} is after to ({to})")
    head = await log_end(bus)
    after, last = await _position(bus, begin, head, 0), await _position(bus, end, head, 1)
    if not head.reaches(last):
        raise InvalidError.field("to", f"the log ends at {head.text} so far, and a replay is of the past")
    if not last.reaches(after):
        raise InvalidError.field("from", f"{start} is after to ({to if end != 'now' else f'now, {head.text}'})")
    return Range(after, last)


async def count(bus: Bus, within: Range, subjects: Sequence[str]) -> int:
    """The number of messages of some subjects in a range; a little less where the log grows meanwhile."""
    total = 0
    for number, stream in enumerate(bus.names.log_streams):
        if read := bus.names.subjects_in(stream, subjects):
            after, to = [await _count_after(bus, stream, position.end_of(number), read) for position in within]
            total += max(0, after - to)
    return total


def _parse(text: int | str, path: str) -> int | Moment | str:
    """A sequence, a time, `start` or `now`, as it was written. Raises InvalidError."""
    if isinstance(text, str):
        if text in _WORDS:
            return text
        if not text.isdecimal() or not text.isascii():
            if not text[:1].isdecimal():
                raise InvalidError.field(path, f'"{text[:64]}" is neither a sequence nor a time, start or now')
            return Moment(parse_time(text, path))
        text = int(text) if len(text) < 20 else -1
    if not 0 <= text <= _MAX_SEQUENCE:
        raise InvalidError.field(path, f"must be a sequence, 0 to {_MAX_SEQUENCE}")
    return text


def _kinds(types: frozenset[str] | None) -> frozenset[tuple[str, str]] | None:
    """No two overlap: a consumer's filter subjects must not."""
    if types is None:
        return None
    parts = [name.partition(".") for name in types]
    whole = {category for category, _, event in parts if event == _WHOLE}
    return frozenset((category, _WHOLE if category in whole else token(event)) for category, _, event in parts)


async def _position(bus: Bus, wanted: int | Moment | str, head: Position, later_ms: int) -> Position:
    """The position of a sequence, or just before a moment, `later_ms` after it."""
    if isinstance(wanted, int):
        return await position_of(bus, wanted)
    if isinstance(wanted, str):
        return bus.names.start if wanted == "start" else head
    return head.least(await position_at(bus, wanted.at // 1000 + later_ms))


async def _count_after(bus: Bus, stream: str, after: int, subjects: Sequence[str]) -> int:
    name = f"count-{secrets.token_hex(8)}"
    try:
        return await bus.ensure_consumer(
            stream,
            name,
            ack_policy="none",
            inactive_threshold=5.0,
            mem_storage=True,
            num_replicas=1,
            deliver_policy="by_start_sequence",
            opt_start_seq=in_stream(after) + 1,
            filter_subjects=list(subjects),
        )
    finally:
        with contextlib.suppress(CrucibleError):
            await bus.delete_consumer(stream, name)
