"""The review of a hook before it is registered: its texts are parsed in a worker process, and the fields that they read
are checked against the types of the hook's events."""

from collections.abc import Iterable, Iterator
from typing import Any

from crucible_core.errors import FieldError, InvalidError
from crucible_core.filters.paths import event_field
from crucible_core.suggest import nearest
from crucible_core.types.catalogue import Catalogue
from crucible_hooks.actions.sandbox import Sandbox
from crucible_hooks.hook import Hook
from crucible_hooks.texts import FieldRead, invalid, read_texts
from crucible_kit.isolation import ExhaustedError, WorkerPool

_OWN = ("id", "replay", "payload", "data", "metadata", "redacted")
"""The top fields of an event's view that filters do not have."""


class Reviewer:
    def __init__(self, isolated: WorkerPool, sandbox: Sandbox) -> None:
        self._isolated = isolated
        self._sandbox = sandbox

    async def review(self, hook: Hook, catalogue: Catalogue) -> None:
        """Raises InvalidError for expressions and scripts that cannot work, with the nearest name that does."""
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


def _wrong_fields(hook: Hook, reads: Iterable[FieldRead], catalogue: Catalogue) -> Iterator[FieldError]:
    """The errors of fields that no event of the hook can have."""
    for one in reads:
        if len(one.path) < 2:
            continue
        try:
            if one.path[0] == "event":
                _check_event(hook, one.path[1:], catalogue)
            else:
                _check_input(hook, one.path[1:], one.at)
        except InvalidError as refused:
            first = refused.errors[0]
            line = f"line {one.line}: " if one.line else ""
            yield FieldError(one.at, f"{line}{'.'.join(one.path)[:200]}: {first.message}", first.suggestion)


def _check_input(hook: Hook, path: tuple[str, ...], at: str) -> None:
    """Raises InvalidError."""
    if at.startswith(("condition.", "action.inputs.")):
        raise _absent("inputs are there for the action only; an event's fields are in event")
    there: Any = hook.definition.action.inputs
    for name in path:
        if not isinstance(there, dict):
            return
        if name not in there:
            raise _absent(f'the action has no input "{name[:80]}"', nearest(name, there))
        there = there[name]


def _check_event(hook: Hook, path: tuple[str, ...], catalogue: Catalogue) -> None:
    """Raises InvalidError."""
    if path[:2] == ("data", "payload"):
        path = path[1:]
    if path[0] == "payload":
        inner = path[1:]
        if inner and all(name and "." not in name for name in inner):
            catalogue.check_path(hook.filters.types, ".".join(inner), stored=True)
    elif path[0] not in _OWN or len(path) > 1:
        _check_metadata(path)


def _check_metadata(path: tuple[str, ...]) -> None:
    """Raises InvalidError for a path outside of the payload that no event has."""
    if path[0] == "redacted" or path[:2] == ("metadata", "extensions") or path == ("metadata", "source"):
        return
    try:
        event_field(None, ".".join(("event", *path)))
    except InvalidError as refused:
        error = refused.errors[0]
        near = nearest(path[0], [*_OWN, "type", "sequence"]) if len(path) == 1 else None
        raise _absent(error.message, f"event.{near}" if near else error.suggestion) from None


def _absent(message: str, suggestion: str | None = None) -> InvalidError:
    return InvalidError.field("", message, suggestion, detail=message)
