"""How long an event is kept: what JetStream is told of it, and how the index reads that. Pure."""

from collections.abc import Mapping

import msgspec

from crucible_core.subjects import KEEP, TTL


class Keeping(msgspec.Struct, frozen=True):
    """How JetStream is told: by a TTL of its own, or none; where `keep_s` is set, it is `events` that removes it."""

    ttl: str | None = None
    keep_s: int | None = None


DEFAULT = Keeping()
FOREVER = Keeping("never")


def keeping(seconds: int | None, max_age_s: float) -> Keeping:
    """A TTL does not go past the stream's own limit, except `never`: what is to be kept longer is kept for ever, and
    removed when its time has come."""
    if seconds is None:
        return FOREVER
    return Keeping(f"{seconds}s") if seconds <= max_age_s else Keeping("never", seconds)


def expiry_of(headers: Mapping[str, str], stored_ms: int) -> tuple[bool, int | None]:
    """Whether the stream's limit passes a message by, and its own end (Unix ms) where it has one."""
    ttl = headers.get(TTL)
    if ttl is None:
        return False, None
    never = ttl == "never"
    seconds = headers.get(KEEP, "") if never else ttl.removesuffix("s")
    return never, stored_ms + int(seconds) * 1000 if seconds.isdecimal() and len(seconds) <= 12 else None


def kept_as(headers: Mapping[str, str]) -> Keeping:
    """The keeping that a stored message was given."""
    seconds = headers.get(KEEP, "")
    return Keeping(headers.get(TTL), int(seconds) if seconds.isdecimal() and len(seconds) <= 12 else None)
