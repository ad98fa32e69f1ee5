"""From where to where a replay goes: what users write, as sequences of the log, and how much there is between them."""

import contextlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from crucible_core.errors import CrucibleError, FieldError, InvalidError
from crucible_core.position import Position, in_stream
from crucible_core.times import parse_time
from crucible_kit.bus import Bus
from crucible_kit.eventlog import log_end, position_at, position_of

_MAX_SEQUENCE = 2**63 - 1
_WORDS = ("start", "now")


class Moment(NamedTuple):
    """Unix microseconds."""

    at: int


class Range(NamedTuple):
    """After the first place in the log, up to the second."""

    after: Position
    to: Position


async def resolve(bus: Bus, start: int | str, to: int | str) -> Range:
    """Sequences, times (of the commit), `start` and `now` (the log's end at this moment). Raises InvalidError."""
    begin, end = place(start, "from"), place(to, "to")
    if end == "start":
        raise _refused("to", "must be a sequence, a time or now")
    if isinstance(begin, Moment) and isinstance(end, Moment) and begin.at > end.at:
        raise _refused("from", f"{start} is after to ({to})")
    head = await log_end(bus)
    after, last = await _position(bus, begin, head, 0), await _position(bus, end, head, 1)
    if not head.reaches(last):
        raise _refused("to", f"the log ends at {head.text} so far, and a replay is of the past")
    if not last.reaches(after):
        raise _refused("from", f"{start} is after to ({to if end != 'now' else f'now, {head.text}'})")
    return Range(after, last)


def place(given: int | str, path: str) -> int | Moment | str:
    """A sequence, a time, `start` or `now`, as it was written. Raises InvalidError."""
    if isinstance(given, str):
        if given in _WORDS:
            return given
        if not given.isdecimal() or not given.isascii():
            if not given[:1].isdecimal():
                raise _refused(path, f'"{given[:64]}" is neither a sequence nor a time, start or now')
            return Moment(parse_time(given, path))
        given = int(given) if len(given) < 20 else -1
    if not 0 <= given <= _MAX_SEQUENCE:
        raise _refused(path, f"must be a sequence, 0 to {_MAX_SEQUENCE}")
    return given


async def count(bus: Bus, within: Range, subjects: Sequence[str]) -> int:
    """How many messages of some subjects are in a range; a little less where the log grows meanwhile."""
    total = 0
    for number, stream in enumerate(bus.names.log_streams):
        if wanted := bus.names.subjects_in(stream, subjects):
            after, to = [await _waiting(bus, stream, place.end_of(number), wanted) for place in within]
            total += max(0, after - to)
    return total


async def _position(bus: Bus, wanted: int | Moment | str, head: Position, later_ms: int) -> Position:
    """The place of a sequence, or before a moment, `later_ms` after it."""
    if isinstance(wanted, int):
        return await position_of(bus, wanted)
    if isinstance(wanted, str):
        return bus.names.start if wanted == "start" else head
    return head.least(await position_at(bus, wanted.at // 1000 + later_ms))


async def _waiting(bus: Bus, stream: str, after: int, subjects: Sequence[str]) -> int:
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


def _refused(path: str, message: str) -> InvalidError:
    return InvalidError(f"{path}: {message}", errors=[FieldError(path, message)])
