"""Two replicas of every role under load, one killed after the other: a short round of `scripts/bench kills`."""

from bench import kills
from bench.replicas import ROLES


def test_each_role_is_killed_once_and_nothing_is_lost() -> None:
    rows = kills.measured(lambda count, seconds: count >= len(ROLES))
    assert not [row for row in rows if row[""] == kills.LOST]
    print("\n" + "\n".join(f"{row['what']}: {row['crucible']}" for row in rows))
