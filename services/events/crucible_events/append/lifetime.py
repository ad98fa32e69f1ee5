"""An event's lifetime: the headers that tell JetStream how long to keep it, and the reading of these headers. Pure."""

from collections.abc import Mapping

import msgspec

from crucible_core.subjects import KEEP, TTL


class Lifetime(msgspec.Struct, frozen=True):
    """`ttl` is JetStream's own, None for the limit of the stream; after `remove_after_s`, `events` removes the
    event."""

    ttl: str | None = None
    remove_after_s: int | None = None


DEFAULT = Lifetime()
FOREVER = Lifetime("never")


def lifetime_of(seconds: int | None, max_age_s: float) -> Lifetime:
    """The lifetime of so many seconds, None for ever. JetStream takes no TTL past the stream's own limit except
    `never`: such an event is stored for ever, and removed by `events`."""
    if seconds is None:
        return FOREVER
    return Lifetime(f"{seconds}s") if seconds <= max_age_s else Lifetime("never", seconds)


def expiry_of(headers: Mapping[str, str], stored_ms: int) -> tuple[bool, int | None]:
    """(forever, expires_ms): the stream's limit spares a message, and its own end (Unix ms) where it has one."""
    ttl = headers.get(TTL)
    if ttl is None:
        return False, None
    never = ttl == "never"
    seconds = headers.get(KEEP, "") if never else ttl.removesuffix("s")
    return never, stored_ms + int(seconds) * 1000 if seconds.isdecimal() and len(seconds) <= 12 else None


def lifetime_in(headers: Mapping[str, str]) -> Lifetime:
    """The lifetime that a stored message has."""
    seconds = headers.get(KEEP, "")
    return Lifetime(headers.get(TTL), int(seconds) if seconds.isdecimal() and len(seconds) <= 12 else None)
