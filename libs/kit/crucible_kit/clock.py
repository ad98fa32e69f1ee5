"""The clock and chance: the only place that asks for the time of day or for random ids."""

import random
import time
from datetime import UTC, datetime

from crucible_core.ids import make_id, make_ids


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def timestamp(at_ms: int | None = None) -> str:
    """RFC 3339 in UTC with microseconds and `Z`: of now, or of a Unix time in milliseconds."""
    moment = datetime.now(UTC) if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def fresh_id(prefix: str) -> str:
    """A new TypeID of this moment. It is a name, not a secret: the generator need not be a cryptographic one."""
    return make_id(prefix, now_ms(), random.randbytes(10))


def fresh_ids(prefix: str, count: int) -> list[str]:
    """New TypeIDs of this moment, in order."""
    return make_ids(prefix, now_ms(), random.randbytes(10), count)
