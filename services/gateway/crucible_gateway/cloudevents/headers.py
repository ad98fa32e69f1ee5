"""Attributes as `ce-` headers (HTTP binding, 3.1.3): percent-encoded, and with the quotes of older versions."""

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from crucible_core.errors import FieldError, InvalidError

_PREFIX = b"ce-"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")


def decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The attributes in a request's headers. Raises InvalidError for one that comes twice or is not UTF-8."""
    found: dict[str, str] = {}
    for header, value in headers:
        if header.startswith(_PREFIX):
            name = header[len(_PREFIX) :].decode("latin-1")
            if name in found:
                raise _refused(name, "may be given only once")
            found[name] = _unescaped(name, value)
    return found


def encoded(value: str) -> str:
    """A text as a header may hold it: all but printable ASCII percent-encoded, and space, quote and percent with it."""
    return quote(value, safe=_PRINTABLE)


def _unescaped(name: str, raw: bytes) -> str:
    try:
        value = raw.decode().strip()
        if quoted := _QUOTED.fullmatch(value):
            value = _ESCAPE.sub(r"\1", quoted[1])
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise _refused(name, "is not UTF-8, or not once its percent-encoding is undone") from None


def _refused(name: str, message: str) -> InvalidError:
    return InvalidError(f"{name}: {message}", errors=[FieldError(name, message)])
