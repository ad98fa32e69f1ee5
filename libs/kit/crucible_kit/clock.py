"""The clock and chance: only this module reads the time of day and draws random ids."""

import random
import time
from datetime import UTC, datetime

from crucible_core.ids import make_id, make_ids


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def timestamp(at_ms: int | None = None) -> str:
    """Formats the present, or a Unix time in milliseconds, as RFC 3339 in UTC with microseconds and `Z`."""
    moment = datetime.now(UTC) if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def fresh_id(prefix: str) -> str:
    """Makes a TypeID of this moment. It is a name, not a secret: the generator need not be a cryptographic one."""
    return make_id(prefix, now_ms(), random.randbytes(10))


def fresh_ids(prefix: str, count: int) -> list[str]:
    """Makes TypeIDs of this moment, in order."""
    return make_ids(prefix, now_ms(), random.randbytes(10), count)
