"""Identifiers: TypeIDs, a prefix and a UUIDv7 (RFC 9562) in Crockford base32 (github.com/jetify-com/typeid, 0.3)."""

import functools
import hashlib
import re

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)
_RANDOM_BITS = 74
_WHOLE, _TIME, _SHORTEST = 26, 10, 8
"""Characters after the prefix: of a whole id, of its time, and of the shortest beginning that names a time."""
_TYPE_ID = re.compile(rf"[a-z]{{2,8}}_(?P<uuid>[0-7][{ALPHABET}]{{25}})", re.IGNORECASE | re.ASCII)
_ID = re.compile(r"[a-z]{2,8}_[A-Za-z0-9_-]{1,64}")


def make_id(prefix: str, at_ms: int, random: bytes) -> str:
    """A TypeID for a moment (Unix milliseconds) and at least 10 random bytes."""
    return f"{prefix}_{_moment(at_ms)}{_chance(int.from_bytes(random[:10], 'big'))}"


def make_ids(prefix: str, at_ms: int, random: bytes, count: int) -> list[str]:
    """TypeIDs of one moment that follow one another: random together, then counted in the lowest 20 bits (RFC 9562,
    6.2). At most half a million."""
    head = make_id(prefix, at_ms, random)[:-4]
    start = int.from_bytes(random[:10], "big") & 0x7FFFF
    return [f"{head}{_PAIRS[n >> 10 & 1023]}{_PAIRS[n & 1023]}" for n in range(start, start + count)]


def derive_id(prefix: str, at_ms: int, *parts: str) -> str:
    """The same id for the same arguments, so that an effect made twice has one name."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return make_id(prefix, at_ms, digest)


def is_id(prefix: str, text: str) -> bool:
    """True if `text` can be an id with this prefix. Ids that users bring need not be UUIDs, only safe to print."""
    return text.startswith(f"{prefix}_") and _ID.fullmatch(text) is not None


def id_span(beginning: str) -> tuple[int, int] | None:
    """The earliest and latest Unix milliseconds of the TypeIDs that begin so; None where it is a whole id, too short to
    name a time (a span of over a second), or no beginning of one."""
    _, _, text = beginning.partition("_")
    time = text[:_TIME]
    if not _SHORTEST <= len(text) < _WHOLE or not all(char in ALPHABET for char in text):
        return None
    low = functools.reduce(lambda value, char: value << 5 | ALPHABET.index(char), time, 0)
    free = 5 * (_TIME - len(time))
    return low << free, (low + 1 << free) - 1


def moment_of(id: str) -> int | None:
    """The Unix milliseconds that a TypeID carries; None for any other text."""
    found = _TYPE_ID.fullmatch(id)
    if found is None:
        return None
    value = 0
    for char in found["uuid"].lower():
        value = value << 5 | ALPHABET.index(char)
    version, variant = value >> 76 & 0xF, value >> 62 & 0b11
    return value >> 80 if (version, variant) == (7, 0b10) else None


def is_after(id: str, at_ms: int) -> bool:
    """True if a TypeID carries a later moment; False for any other text."""
    uuid = id.partition("_")[2]
    return len(uuid) == 26 and uuid[:10].lower() > _moment(at_ms) and (moment_of(id) or 0) > at_ms


@functools.lru_cache(maxsize=64)  # thousands of ids are made in one millisecond
def _moment(at_ms: int) -> str:
    """A UUIDv7's 48 bits of time, after the two zero bits that fill up the first character."""
    return _base32(at_ms & ((1 << 48) - 1), 40)


def _chance(random: int) -> str:
    """Its other 80 bits: version, 12 random bits, variant, 62 random bits."""
    bits = random & ((1 << _RANDOM_BITS) - 1)
    return _base32(0x7 << 76 | bits >> 62 << 64 | 0b10 << 62 | bits & ((1 << 62) - 1), 70)


def _base32(value: int, top: int) -> str:
    """Two characters for each ten bits, of which the first begin at the bit `top`."""
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(top, -1, -10)])
