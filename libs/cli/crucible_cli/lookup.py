"""Look-up of one thing by its id, its name, or the beginning of either."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from crucible_core.errors import ConflictError, NotFoundError
from crucible_core.suggest import nearest

_LEAST = 6
"""Characters of an id after its prefix, at least: fewer are rather a name that is misspelt."""
_SHOWN = 3
N = TypeVar("N")


class _WithId(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_WithId)


def find_by_id(text: str, kind: str, get: Callable[[str], T], beginning: Callable[[str], Sequence[T]]) -> T:
    """The thing that `get` finds, else the one of that name, or the only one whose id begins so, of those that
    `beginning` gives. `kind` is the prefix of the ids (`whk`). Raises NotFoundError, and ConflictError that names the
    ids where several begin so."""
    missing = NotFoundError(f"nothing has the name or id {text[:100]!r}")
    if "/" not in text:  # which would be another path
        try:
            return get(text)
        except NotFoundError as error:
            missing = error
    start = text if text.startswith(f"{kind}_") else f"{kind}_{text}"
    known = beginning(start)
    found = [thing for thing in known if getattr(thing, "name", None) == text]
    if not found and len(start) >= len(kind) + 1 + _LEAST:
        found = [thing for thing in known if thing.id.startswith(start)]
    if not found:
        raise missing
    if len(found) > 1:
        shown = ", ".join(thing.id for thing in found[:_SHOWN])
        raise ConflictError(f"several ids begin with {start}: {shown}{', …' if len(found) > _SHOWN else ''}")
    return get(found[0].id)  # lists show less


def find_by_name(text: str, kind: str, get: Callable[[str], N], names: Callable[[], Sequence[str]]) -> N:
    """The same for a `kind` of things that have names only: the one of that name, or the only one whose name begins
    so. Raises NotFoundError with the nearest name, and ConflictError."""
    if "/" not in text:
        with contextlib.suppress(NotFoundError):
            return get(text)
    known = names()
    found = [name for name in known if text and name.startswith(text)]
    if len(found) == 1:
        return get(found[0])
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        raise ConflictError(f"the names of several {kind}s begin with {text}: {shown}")
    meant = nearest(text, known)
    raise NotFoundError(f"there is no {kind} {text[:100]!r}" + (f": did you mean {meant}?" if meant else ""))
