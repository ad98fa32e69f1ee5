"""Templates: `{{ expression }}` in the values of a hook, parsed once, filled in from the event of each run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from crucible_core.errors import InvalidError
from crucible_core.limits import TEMPLATES
from crucible_hooks.expressions.expression import Expression, expression

Values = Iterator[Any]
"""The values of a template's expressions, in their order."""

Part = str | Expression
_OPEN, _CLOSE = "{{", "}}"


class Template(msgspec.Struct, frozen=True):
    """`fill` makes the value out of the values of `expressions`."""

    expressions: tuple[Expression, ...]
    fill: Callable[[Values], Any]


def parse(text: str, at: str) -> tuple[Part, ...]:
    """Literal text and expressions, in order. Raises InvalidError for an expression that is too long or does not end,
    and for too many of them."""
    parts: list[Part] = []
    index = 0
    while (start := text.find(_OPEN, index)) >= 0:
        end = text.find(_CLOSE, start)
        if end < 0:
            raise InvalidError.field(at, "a {{ without its }}")
        parts += [text[index:start], expression(text[start + 2 : end], at)]
        if len(parts) > 2 * TEMPLATES:
            raise InvalidError.field(at, f"a hook may have {TEMPLATES} templates")
        index = end + 2
    return tuple(part for part in (*parts, text[index:]) if part != "")


def compile_value(value: Any, at: str) -> Template:
    """Fills in every template inside `value`, in objects and lists too.

    A text that is one template becomes the expression's own value; elsewhere values are written into the text.
    """
    if isinstance(value, dict):
        return combine({key: compile_value(item, f"{at}.{key}") for key, item in value.items()})
    if isinstance(value, list):
        items = [compile_value(item, f"{at}.{i}") for i, item in enumerate(value)]
        return Template(_expressions(items), lambda values: [item.fill(values) for item in items])
    if isinstance(value, str) and _OPEN in value:
        parts = parse(value, at)
        if len(parts) == 1 and isinstance(parts[0], Expression):
            return Template((parts[0],), next)
        return _join(parts, str)
    return Template((), lambda values: value)


def compile_text(text: str, at: str, escape: Callable[[str], str] = str) -> Template:
    """Always a text; `escape` is applied to the values that are written between the author's own words."""
    parts = parse(text, at)
    return _join(parts, escape if len(parts) > 1 else str)


def combine(templates: Mapping[str, Template]) -> Template:
    """One template of several, whose value is an object of theirs."""
    return Template(
        _expressions(list(templates.values())),
        lambda values: {key: template.fill(values) for key, template in templates.items()},
    )


def text_of(value: Any) -> str:
    """A value inside a text: a text as it is, nothing for null, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _expressions(templates: Sequence[Template]) -> tuple[Expression, ...]:
    return tuple(one for template in templates for one in template.expressions)


def _join(parts: tuple[Part, ...], escape: Callable[[str], str]) -> Template:
    return Template(
        tuple(part for part in parts if isinstance(part, Expression)),
        lambda values: "".join(part if isinstance(part, str) else escape(text_of(next(values))) for part in parts),
    )
