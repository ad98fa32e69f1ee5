"""The review of a hook before it is registered: its texts are parsed in a worker process, and the fields that they read
are held against the types that the hook listens to."""

from collections.abc import Iterable, Iterator
from typing import Any

from crucible_core.errors import FieldError, InvalidError
from crucible_core.filters.paths import event_place
from crucible_core.suggest import nearest
from crucible_core.types.catalogue import Catalogue
from crucible_hooks.actions.sandbox import Sandbox
from crucible_hooks.hook import Hook
from crucible_hooks.texts import Reads, invalid, read_texts
from crucible_kit.isolation import ExhaustedError, WorkerPool

_OWN = ("id", "replay", "payload", "data", "metadata", "redacted")
"""What the view of an event has at its top and no filter knows by itself."""


class Reviewer:
    def __init__(self, isolated: WorkerPool, sandbox: Sandbox) -> None:
        self._isolated = isolated
        self._sandbox = sandbox

    async def review(self, hook: Hook, catalogue: Catalogue) -> None:
        """Raises InvalidError for expressions and scripts that cannot work, with the nearest thing that does."""
        texts = hook.texts()
        if not texts:
            return
        try:
            reads = await self._isolated.run("review", read_texts, texts)
        except ExhaustedError as error:
            raise invalid([FieldError(one.at, f"it cannot be checked: {error}") for one in texts]) from None
        errors = list(_wrong_fields(hook, reads, catalogue))
        if errors:
            raise invalid(errors)
        for text in texts:
            if text.functions is not None:
                await self._sandbox.check(text.source, text.at)


def _wrong_fields(hook: Hook, reads: Iterable[Reads], catalogue: Catalogue) -> Iterator[FieldError]:
    """Fields that no event which the hook listens to can have."""
    for one in reads:
        if len(one.place) < 2:
            continue
        try:
            if one.place[0] == "event":
                _check_event(hook, one.place[1:], catalogue)
            else:
                _check_input(hook, one.place[1:], one.at)
        except InvalidError as refused:
            first = refused.errors[0]
            line = f"line {one.line}: " if one.line else ""
            yield FieldError(one.at, f"{line}{'.'.join(one.place)[:200]}: {first.message}", first.suggestion)


def _check_input(hook: Hook, place: tuple[str, ...], at: str) -> None:
    """Raises InvalidError."""
    if at.startswith(("condition.", "action.inputs.")):
        raise _absent("inputs are there for the action only; an event's fields are in event")
    there: Any = hook.definition.action.inputs
    for name in place:
        if not isinstance(there, dict):
            return
        if name not in there:
            raise _absent(f'the action has no input "{name[:80]}"', nearest(name, there))
        there = there[name]


def _check_event(hook: Hook, place: tuple[str, ...], catalogue: Catalogue) -> None:
    """Raises InvalidError."""
    if place[:2] == ("data", "payload"):
        place = place[1:]
    if place[0] == "payload":
        inner = place[1:]
        if inner and all(name and "." not in name for name in inner):
            catalogue.check_path(hook.filters.types, ".".join(inner), stored=True)
    elif place[0] not in _OWN or len(place) > 1:
        _check_metadata(place)


def _check_metadata(place: tuple[str, ...]) -> None:
    """Raises InvalidError for a place outside of the payload that no event has."""
    if place[0] == "redacted" or place[:2] == ("metadata", "extensions") or place == ("metadata", "source"):
        return
    try:
        event_place(None, ".".join(("event", *place)))
    except InvalidError as refused:
        error = refused.errors[0]
        near = nearest(place[0], [*_OWN, "type", "sequence"]) if len(place) == 1 else None
        raise _absent(error.message, f"event.{near}" if near else error.suggestion) from None


def _absent(message: str, suggestion: str | None = None) -> InvalidError:
    return InvalidError(message, errors=[FieldError("", message, suggestion)])
