"""The ids of memories: fresh, or derived from the note that the memory is made of, so that it is made once."""

from crucible_core.ids import derive_id, is_id
from crucible_kit.clock import fresh_id

from .state import refused

EPOCH_MS = 1_735_689_600_000
"""2025-01-01: the moment in the id of every note's memory. It never changes: a name gives the same id for ever."""


def note_id(world: str, path: str, root: str = "", *again: str) -> str:
    """The id of the memory that is made from the first note at a path below a watched folder: two folders may each have
    a note of the same path. `again` tells a later one from it, when that has been moved away."""
    return derive_id("mem", EPOCH_MS, "note", world, root, path, *again)


def new_id(given: str | None) -> str:
    """The id that the caller wants, else a fresh one. Raises InvalidError for what is no memory's id."""
    if given is None:
        return fresh_id("mem")
    if not is_id("mem", given):
        raise refused("id", "a memory's id is mem_ and up to 64 letters, digits, _ or -")
    return given
