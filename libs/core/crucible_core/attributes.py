"""CloudEvents attributes as rules (github.com/cloudevents/spec, 1.0): what one may be named and hold, and which of them
an event keeps as its extensions because the envelope has no field for them."""

import re

from crucible_core.limits import EXTENSION_CHARS

Value = bool | int | str
"""Types of an attribute's value; all other types of the specification travel as text."""
Extensions = dict[str, Value]

PLAIN_JSON = "application/json"

FIELDS = frozenset(
    {
        "specversion", "id", "source", "type", "subject", "time", "data", "sequence", "traceparent", "correlationid",
        "causationid", "authtype", "authid", "worldid", "roomid", "cruciblehop", "crucibleredacted", "crucibleversion",
    }
)  # fmt: skip
"""The attributes that are fields of the envelope: no extension may have such a name."""

_NAME = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
_NONCHARACTERS = "".join(f"{chr(plane * 0x10000 + 0xFFFE)}{chr(plane * 0x10000 + 0xFFFF)}" for plane in range(17))
_FORBIDDEN = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,127}"
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t\x21-\x7e]*)?", re.ASCII)


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def is_kept(name: str) -> bool:
    """True if an extension is one that Crucible adds, to keep how a foreign event came in."""
    return name.startswith("crucible") or name == "originalid"


def is_text(value: str) -> bool:
    """True if a String attribute may hold it: no control characters, surrogates or noncharacters."""
    return _FORBIDDEN.search(value) is None


def mistake(name: str, value: Value) -> str | None:
    """The mistake of an extension, in words; None if there is none."""
    if not is_name(name):
        return "an attribute's name is lower-case letters and digits, at most 64"
    if name in FIELDS:
        return "is a field of the event, not an extension"
    if isinstance(value, str):
        return _text_mistake(name, value)
    if not -(2**31) <= value < 2**31:
        return "a whole number must fit in 32 bits; send it as text"
    return None


def _text_mistake(name: str, value: str) -> str | None:
    if len(value) > EXTENSION_CHARS or not is_text(value):
        return f"must be at most {EXTENSION_CHARS} characters, none of them a control character"
    if name == "datacontenttype" and not (is_media_type(value) and is_json(value)):
        return "must be a JSON media type: payloads are JSON"
    return None


def is_media_type(text: str) -> bool:
    return len(text) <= EXTENSION_CHARS and _MEDIA_TYPE.fullmatch(text) is not None


def essence(media_type: str) -> str:
    """`text/html` of ` Text/HTML; charset=UTF-8`."""
    return media_type.partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """The JSON format's own rule: `*/json` or `*/*+json`."""
    return essence(media_type).endswith(("/json", "+json"))
