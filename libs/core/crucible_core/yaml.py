"""The one reader of YAML: values of the YAML 1.2 core schema from bounded text, and the front matter of Markdown.

Differences from the core schema (https://yaml.org/spec/1.2.2/#103-core-schema), all so that a value stays as it was
written: an integer with a leading zero (`0123456`), one of more than 64 bits, `.inf` and `.nan` are text, and so is
every key. Values are plain JSON. A key that stands twice in one mapping is refused.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import re2
import yaml

from crucible_core.errors import InvalidError
from crucible_core.limits import YAML_BYTES, YAML_DEPTH, YAML_VALUES

FENCE = "---"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_KINDS = {"null": (type(None),), "bool": (bool,), "int": (int,), "float": (int, float)}
_DECIMAL = re2.compile(r"[-+]?(0|[1-9][0-9]*)")
_OCTAL = re2.compile(r"0o[0-7]+")
_HEX = re2.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re2.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_QUOTE = "put the value in quotes"
_ESCAPE = "write a backslash twice, or put the value in single quotes"
_BESIDE = f"{_QUOTE}, those within it written twice, or indent the line as those beside it"
_FIXES = (
    ("tab character", "indent with spaces, not tabs"),
    ("mapping values are not allowed", 'put a value that contains ": " in quotes'),
    ("scanning an alias", f"{_QUOTE} if it begins with *"),
    ("scanning an anchor", f"{_QUOTE} if it begins with &"),
    ("undefined alias", f"{_QUOTE} if it begins with *"),
    ("escape character", _ESCAPE),
    ("hexdecimal", _ESCAPE),
    ("escape code", _ESCAPE),
    ("quoted scalar", "close the quote"),
    ("control characters", "remove the character, or write it as \\x.. in double quotes"),
    ("flow sequence", "close the bracket, or put the value in quotes"),
    ("flow mapping", "close the brace, or put the value in quotes"),
    ("flow node", "close the bracket, or put the value in quotes"),
    ("block sequence entries", "begin the list on the line below its key"),
    ("could not find expected ':'", "put a colon and a space after the key"),
    ("expected key", _BESIDE),
    ("expected '-' indicator", _BESIDE),
    ("document start", _BESIDE),
    ("surrogates not allowed", "remove the character"),
)
_FIRST_KEY = re2.compile(r"[^\s:#\-][^:\n]{0,60}:(?:\s|$)")
"""The beginning of what is meant as a mapping."""
_NO_SPACE = re2.compile(r"[^\s:#\-\d][^\s:]{0,60}:[^\s/:]")
_ENDLESS = f"line 1: no line of {FENCE} ends it within {YAML_BYTES // 1024} KiB: add one, or make it shorter"
_HASH_TAGS = re2.compile(r"(?:tags?[ \t]*:|[ \t]*-)[ \t]+#[^\s#]")


class FrontMatter(NamedTuple):
    """`head` is the YAML between the fences, None where the text has none; `body` is the text after it."""

    head: str | None
    body: str


def split_front_matter(text: str) -> FrontMatter:
    """The YAML between the `---` line that `text` begins with and the next line of `---` or `...`, and the rest.

    A byte order mark before it is dropped. Text without a closing fence within YAML_BYTES has no front matter.
    """
    text = text.removeprefix("\ufeff")
    offset = _line_end(text, 0)
    if text[:offset].rstrip() != FENCE:
        return FrontMatter(None, text)
    start = offset
    while offset < len(text) and offset - start <= YAML_BYTES:
        end = _line_end(text, offset)
        if text[offset:end].rstrip() in (FENCE, "..."):
            return FrontMatter(text[start:offset], text[end:])
        offset = end
    return FrontMatter(None, text)


class Head(NamedTuple):
    """The front matter of a note: what its mapping says (None where the text has none), the text of that, the text
    after it, and what its writer should mend, with its line in the file."""

    found: dict[str, Any] | None
    head: str
    body: str
    problem: str | None = None


def read_front_matter(text: str, *, as_text: tuple[str, ...] = ()) -> Head:
    """Never fails: where there is a problem and nothing found, `head` may still be of use.

    A text that begins with `---` but has no mapping there has no front matter: that is a line across the page too.
    """
    head, body = split_front_matter(text)
    if head is None:
        first = _line_end(body, 0)
        endless = body[:first].rstrip() == FENCE and _FIRST_KEY.match(body[first : first + 100])
        return Head(None, "", body, _ENDLESS if endless else None)
    try:
        found = load(head, first_line=2, as_text=as_text)
    except InvalidError as error:
        return Head(None, head, body, error.detail)
    if isinstance(found, dict):
        return Head(found, head, body, _lost_tags(found, head))
    if found is None and not head.strip():
        return Head({}, head, body)
    return Head(None, "", text.removeprefix("\ufeff"), _meant_as_mapping(head))


def _meant_as_mapping(head: str) -> str | None:
    lines = [line for line in head.splitlines() if line.strip()]
    if not lines or not all(_NO_SPACE.match(line) for line in lines):
        return None
    return f"line 2: {lines[0][:80]!r} is no key and value: put a space after the colon"


def _lost_tags(found: dict[str, Any], head: str) -> str | None:
    """Tags with their marks and without quotes are comments."""
    values = [found[name] for name in ("tags", "tag") if name in found]
    if not any(value is None or (isinstance(value, list) and None in value) for value in values):
        return None
    for number, line in enumerate(head.splitlines(), 2):
        if _HASH_TAGS.match(line):
            return f"line {number}: a # begins a comment: leave it out of the tag, or {_QUOTE}"
    return None


def load(text: str, *, first_line: int = 1, as_text: tuple[str, ...] = ()) -> Any:
    """The value of the one YAML document in `text` as plain JSON; None where it is empty.

    `first_line` is the number that errors give the text's first line (2 for front matter). Below the top-level keys in
    `as_text`, scalars stay text as written (`1.10`, `No`). Raises InvalidError, which names the line and a fix, for
    what is no YAML, a key that stands twice, more than YAML_BYTES, YAML_DEPTH or YAML_VALUES, and tags of no meaning.
    """
    if len(text.encode(errors="replace")) > YAML_BYTES:
        raise InvalidError(f"the YAML is larger than {YAML_BYTES // 1024} KiB: make it shorter")
    reader = _Reader(_events(text, first_line), first_line, as_text)
    return reader.document()


def _line_end(text: str, offset: int) -> int:
    end = text.find("\n", offset)
    return len(text) if end < 0 else end + 1


def _events(text: str, first_line: int) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        opened = any(word in (error.context or "") for word in ("flow", "quoted", "simple key"))
        mark = (error.context_mark if opened else None) or error.problem_mark
        told = ", ".join(part for part in (error.context, error.problem) if part)
        _refuse(first_line + mark.line if mark else first_line, told, _fix(told, text, mark))
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML or UTF-8 does not have
        told = str(error).splitlines()[0]
        line = text.count("\n", 0, getattr(error, "position", None) or 0)
        _refuse(first_line + line, told, _fix(told, text, None))


def _fix(told: str, text: str, mark: yaml.Mark | None) -> str | None:
    if "cannot start any token" in told and mark:
        line = text.splitlines()[mark.line] if mark.line < text.count("\n") + 1 else ""
        tab = line[mark.column : mark.column + 1] == "\t" or "\t" in line[: len(line) - len(line.lstrip())]
        return "indent with spaces, not tabs" if tab else _QUOTE
    return next((fix for known, fix in _FIXES if known in told), _QUOTE)


def _refuse(line: int, problem: str, fix: str | None) -> NoReturn:
    told = f"line {line}: {problem}"
    raise InvalidError.field(f"line {line}", problem, fix, detail=f"{told}: {fix}" if fix else told)


class _Reader:
    """Builds values from PyYAML's events, counting depth and values: libyaml's own loader overflows the stack."""

    def __init__(self, events: Iterator[Any], first_line: int, as_text: tuple[str, ...]) -> None:
        self._events = events
        self._first_line = first_line
        self._as_text = as_text
        self._values = 0
        self._anchors: dict[str, tuple[Any, int]] = {}

    def document(self) -> Any:
        value: Any = None
        seen = False
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    self._refuse(event, "a second document begins", "keep one document, without a line of ---")
                seen = True
                value = self._value(next(self._events), 0, as_text=False)
        return value

    def _refuse(self, event: Any, problem: str, fix: str | None) -> NoReturn:
        _refuse(self._first_line + event.start_mark.line, problem, fix)

    def _count(self, event: Any, values: int) -> None:
        self._values += values
        if self._values > YAML_VALUES:
            self._refuse(event, f"more than {YAML_VALUES} values", "make it shorter")

    def _value(self, event: Any, depth: int, *, as_text: bool) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._values
        self._count(event, 1)
        if depth > YAML_DEPTH:
            self._refuse(event, f"nested more than {YAML_DEPTH} deep", "make it flatter")
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, as_text)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, "seq")
            value = [self._value(inner, depth + 1, as_text=as_text) for inner in self._until(yaml.SequenceEndEvent)]
        else:
            self._check_tag(event, "map")
            value = self._mapping(depth, as_text)
        if event.anchor:
            self._anchors[event.anchor] = value, self._values - before
        return value

    def _until(self, end: type[yaml.Event]) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event

    def _alias(self, event: Any) -> Any:
        """The size of an anchor's target, counted as if it were written out: references make a few lines fill any
        memory."""
        if event.anchor not in self._anchors:
            self._refuse(event, f"*{event.anchor} names nothing", f"{_QUOTE} if it begins with *")
        value, size = self._anchors[event.anchor]
        self._count(event, size)
        return value

    def _mapping(self, depth: int, as_text: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for event in self._until(yaml.MappingEndEvent):
            key = self._key(event)
            if key in found:
                self._refuse(event, f"the key {key!r} stands twice (first in line {lines[key]})", "keep one of them")
            lines[key] = self._first_line + event.start_mark.line
            as_written = as_text or (depth == 0 and key in self._as_text)
            found[key] = self._value(next(self._events), depth + 1, as_text=as_written)
        return found

    def _key(self, event: Any) -> str:
        self._count(event, 1)
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse(event, "a list or a mapping is no key", f"{_QUOTE} if it begins with {{ or [")
        return str(event.value)

    def _check_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            self._refuse(event, f"the tag {event.tag} means nothing here", "remove it")

    def _scalar(self, event: Any, as_text: bool) -> Any:
        text: str = event.value
        if event.tag not in (None, "!"):
            return self._tagged(event, text)
        if event.tag == "!" or not event.implicit[0]:
            return text
        if as_text:
            return text or None
        return _plain(text)

    def _tagged(self, event: Any, text: str) -> Any:
        kind = event.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        value = _plain(text)
        if kind not in _KINDS:
            self._refuse(event, f"the tag {event.tag} means nothing here", _QUOTE)
        if type(value) not in _KINDS[kind]:
            self._refuse(event, f"{text!r} is no {kind}", "remove the tag")
        return float(value) if kind == "float" else value


def _plain(text: str) -> Any:
    """A plain scalar by the core schema."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if len(text) > 64 or text[0] not in "-+.0123456789":
        return text
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):
            number = int(text.removeprefix("0o"), base) if base == 8 else int(text, base)
            return number if -(2**63) <= number < 2**63 else text
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if value - value == 0 else text  # 1e999 is no number of JSON
    return text
