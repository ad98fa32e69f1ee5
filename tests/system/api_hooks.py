"""What Schemathesis has to know of this API beyond its description; its command line loads this: test_openapi.py."""

import itertools
import json
import os
from typing import Any

import schemathesis

KNOWN: dict[str, str] = json.loads(os.environ["KNOWN_IDS"])
"""An id that exists, by the beginning of the path that it belongs to."""
CALLS = itertools.count()
NOWHERE = "http://127.0.0.1:9/"


@schemathesis.serializer("application/x-ndjson")
def ndjson(context: Any, value: Any) -> bytes:
    lines = value if isinstance(value, list) else [value]
    return b"\n".join(
        line.encode("utf-8", "replace") if isinstance(line, str) else json.dumps(line).encode() for line in lines
    )


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Half of what is asked for exists, nothing goes out to the world, and nobody waits for the future."""
    for prefix, id in KNOWN.items():
        meant = case.path.startswith(prefix) and case.method != "DELETE" and _positive(case)
        if meant and next(CALLS) % 2:
            case.path_parameters.update(dict.fromkeys(case.path_parameters, id))
    if isinstance(case.body, dict):
        for part in (case.body, case.body.get("action")):
            if isinstance(part, dict) and isinstance(part.get("url"), str) and "://" in part["url"]:
                part["url"] = NOWHERE
        if isinstance(case.body.get("min_sequence"), int):
            case.body["min_sequence"] %= 3
    if isinstance((case.query or {}).get("min_sequence"), int):
        case.query["min_sequence"] %= 3


def _positive(case: Any) -> bool:
    return case.meta is None or case.meta.generation.mode.is_positive
