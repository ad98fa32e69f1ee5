"""Errors for people: what went wrong, where, and the next step."""

from rich.text import Text

from crucible_cli.display import clean
from crucible_client import UnreachableError
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    DeniedError,
    FieldError,
    ForbiddenError,
    LimitedError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)

NEXT_STEPS: tuple[tuple[type[CrucibleError], str], ...] = (
    (UnreachableError, "is `crucible up` running? One that has its own --data is found by the same --data here"),
    (UnauthenticatedError, "give --key or CRUCIBLE_API_KEY; a local `crucible up` keeps its key in admin.key (--data)"),
    (ForbiddenError, "use another key"),
    (LimitedError, "wait a moment"),
    (UnavailableError, "a service is away; it comes back by itself, so try again"),
)
_CURRENT = frozenset(("current_sequence", "current_revision"))
"""Members of a conflict that somebody else's change has caused: not of one with what always holds."""


def explain(error: CrucibleError) -> Text:
    """One line, and one more for each refused field that it does not name."""
    headline = _headline(error)
    text = Text.assemble(("error: ", "bold red"), clean(headline, 600))
    for field in error.errors:
        if _is_in_headline(field, error, headline):
            if field.suggestion and field.suggestion not in headline:
                text.append(f" (did you mean {clean(field.suggestion, 200)}?)")
            continue
        text.append(f"\n  {clean(field.path, 200)}: ", "bold")
        text.append(clean(field.message, 400))
        if field.suggestion and field.suggestion not in field.message:
            text.append(f" (did you mean {clean(field.suggestion, 200)}?)")
    step = _next_step(error)
    return text if step is None else text.append(f" — {step}", "yellow")


def _is_in_headline(field: FieldError, error: CrucibleError, headline: str) -> bool:
    """True if the headline has it: the first mistake, or the one thing that is not there."""
    if isinstance(error, NotFoundError) and len(error.errors) == 1:
        return True
    first = field is error.errors[0]
    return first and (field.message == headline or (field.path in headline and field.message in headline))


def _next_step(error: CrucibleError) -> str | None:
    if isinstance(error, ConflictError) and error.extra.keys() & _CURRENT:
        return "read it again and retry"
    return next((step for kind, step in NEXT_STEPS if isinstance(error, kind)), None)


def _headline(error: CrucibleError) -> str:
    if not isinstance(error, DeniedError):
        return error.detail
    reason = str(error.extra.get("reason") or error.detail)
    return f"denied by the hook {error.extra.get('hook', '?')}: {reason}"
