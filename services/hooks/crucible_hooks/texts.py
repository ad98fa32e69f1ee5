"""The texts of a hook that are parsed before they run, and what a worker process reads in them."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import Signature

import msgspec

from crucible_core.errors import FieldError, InvalidError
from crucible_hooks.actions import scripts
from crucible_hooks.expressions import expression

_MOST_ERRORS = 20


class Text(msgspec.Struct, frozen=True):
    """An expression, or a script: that has `functions` that it is given, each with how it is called, and others that
    are `forbidden` to it, with the reason. `at` is its path in the definition."""

    at: str
    source: str
    functions: Mapping[str, Signature] | None = None
    forbidden: Mapping[str, str] = {}


class Reads(msgspec.Struct, frozen=True):
    """A place of `event` or `inputs` that a text reads, as names that begin with the variable; a "0" stands for any
    element of a list. `line` is 0 in an expression."""

    at: str
    place: tuple[str, ...]
    line: int = 0


def read_texts(texts: Sequence[Text]) -> list[Reads]:
    """What all of them read. Raises InvalidError with the mistakes of all.

    A parser may take long over what it is given, and worse: call it in a worker process.
    """
    errors: list[FieldError] = []
    reads: list[Reads] = []
    for text in texts:
        try:
            reads += _reads(text)
        except InvalidError as refused:
            errors += refused.errors
    if errors:
        raise invalid(errors)
    return reads


def _reads(text: Text) -> Iterator[Reads]:
    if text.functions is None:
        for place in expression.check(text.source, text.at).fields:
            yield Reads(text.at, place)
    else:
        for place, line in scripts.check(text.source, text.at, text.functions, text.forbidden).fields:
            yield Reads(text.at, place, line)


def invalid(errors: Sequence[FieldError]) -> InvalidError:
    """One error that names the first of them and holds the first twenty."""
    first = errors[0]
    hint = f' (did you mean "{first.suggestion}"?)' if first.suggestion and "did you mean" not in first.message else ""
    return InvalidError(f"{first.path}: {first.message}{hint}", errors=list(errors)[:_MOST_ERRORS])
