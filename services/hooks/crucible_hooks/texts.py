"""The expressions and scripts of a hook, as a worker process parses them: their mistakes, and the fields they read."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import Signature

import msgspec

from crucible_core.errors import FieldError, InvalidError
from crucible_core.limits import ERRORS
from crucible_hooks.actions import scripts
from crucible_hooks.expressions import expression


class Text(msgspec.Struct, frozen=True):
    """An expression, or a script: a script has `functions`, each with its signature, and `forbidden` ones with the
    reason. `at` is its path in the definition."""

    at: str
    source: str
    functions: Mapping[str, Signature] | None = None
    forbidden: Mapping[str, str] = {}


class FieldRead(msgspec.Struct, frozen=True):
    """A path of `event` or `inputs` that a text reads, as names that begin with the variable; a "0" stands for any
    element of a list. `line` is 0 in an expression."""

    at: str
    path: tuple[str, ...]
    line: int = 0


def read_texts(texts: Sequence[Text]) -> list[FieldRead]:
    """The fields that they read. Raises InvalidError with the mistakes of all.

    A parser may take long over a text from outside, and worse: call it in a worker process.
    """
    errors: list[FieldError] = []
    reads: list[FieldRead] = []
    for text in texts:
        try:
            reads += _reads(text)
        except InvalidError as refused:
            errors += refused.errors
    if errors:
        raise invalid(errors)
    return reads


def _reads(text: Text) -> Iterator[FieldRead]:
    if text.functions is None:
        for path in expression.check(text.source, text.at).fields:
            yield FieldRead(text.at, path)
    else:
        for path, line in scripts.check(text.source, text.at, text.functions, text.forbidden).fields:
            yield FieldRead(text.at, path, line)


def invalid(errors: Sequence[FieldError]) -> InvalidError:
    """One error that names the first of them and holds the first twenty."""
    first = errors[0]
    hint = f' (did you mean "{first.suggestion}"?)' if first.suggestion and "did you mean" not in first.message else ""
    return InvalidError(f"{first.path}: {first.message}{hint}", errors=list(errors)[:ERRORS])
