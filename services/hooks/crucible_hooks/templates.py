"""Templates: `{{ expression }}` in the values of a hook, compiled once, filled in from the event of each run."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .expressions import Expression, compile_expression, evaluate

Context = Mapping[str, Any]
"""What expressions see: `event` and `inputs`."""

Render = Callable[[Context], Any]
Part = str | Expression

_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def parse(text: str, at: str) -> tuple[Part, ...]:
    """Literal text and expressions, in order. Raises InvalidError where an expression is refused."""
    pieces = _TEMPLATE.split(text)
    parts = [compile_expression(piece, at) if odd % 2 else piece for odd, piece in enumerate(pieces)]
    return tuple(part for part in parts if part != "")


def compile_value(value: Any, at: str) -> Render:
    """The function that fills in every template inside `value`, in objects and lists too.

    A text that is one template becomes the expression's own value; elsewhere values are written into the text.
    """
    if isinstance(value, dict):
        fields = {key: compile_value(item, f"{at}.{key}") for key, item in value.items()}
        return lambda context: {key: render(context) for key, render in fields.items()}
    if isinstance(value, list):
        items = [compile_value(item, f"{at}.{i}") for i, item in enumerate(value)]
        return lambda context: [render(context) for render in items]
    if isinstance(value, str) and "{{" in value:
        parts = parse(value, at)
        if len(parts) == 1 and isinstance(parts[0], Expression):
            whole = parts[0]
            return lambda context: evaluate(whole, context)
        return _joined(parts, str)
    return lambda context: value


def compile_text(text: str, at: str, escape: Callable[[str], str] = str) -> Callable[[Context], str]:
    """Always a text; `escape` is applied to the values that are written between the author's own words."""
    parts = parse(text, at)
    return _joined(parts, escape if len(parts) > 1 else str)


def text_of(value: Any) -> str:
    """A value inside a text: a text as it is, nothing for null, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _joined(parts: tuple[Part, ...], escape: Callable[[str], str]) -> Callable[[Context], str]:
    return lambda context: "".join(
        part if isinstance(part, str) else escape(text_of(evaluate(part, context))) for part in parts
    )
