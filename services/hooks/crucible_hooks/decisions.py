"""What the answer of a Pre hook means. An answer that is not understood is a failure, for which the hook's failure
policy holds: a guard's slip must not allow."""

from typing import Any

import msgspec

from crucible_core.decode import check_keys, check_text
from crucible_core.errors import CrucibleError

from .failures import RunError

_FORMS = 'a Pre hook answers nothing, {"deny": "reason"} or {"payload": {…}}'
_MAX_REASON = 2000
_SHOWN = 200


class Decision(msgspec.Struct, frozen=True):
    """Allowed where both are None."""

    deny: str | None = None
    payload: dict[str, Any] | None = None


def read_answer(raw: bytes, *, complete: bool, what: str) -> Any:
    """What a command has printed or an endpoint has sent: None for nothing, or the value of the one JSON document that
    it is. Raises RunError for anything else, such as words beside the JSON; `what` names it."""
    if not complete:
        raise RunError(f"{what} is larger than an answer may be")
    if not raw.strip():
        return None
    try:
        check_text(raw, what)
        found = msgspec.json.decode(raw)
        check_keys(raw, what)
    except CrucibleError as error:
        raise RunError(error.detail) from None
    except (ValueError, RecursionError) as error:
        shown = raw.decode(errors="replace").strip()[:_SHOWN]
        raise RunError(f"{_FORMS}; {what} is not one JSON document ({error}): {shown}") from None
    return found


def decision(output: Any) -> Decision:
    """Raises RunError for an answer that is not understood."""
    if output is None:
        return Decision()
    if not isinstance(output, dict) or len(output) != 1 or not output.keys() & {"deny", "payload"}:
        raise RunError(f"{_FORMS}, not {_kind(output)}")
    if "payload" in output:
        if not isinstance(output["payload"], dict):
            raise RunError("the payload that a hook answers must be an object")
        return Decision(payload=output["payload"])
    reason = output["deny"]
    if reason is True or (isinstance(reason, str) and not reason.strip()):
        return Decision(deny="denied without a reason")
    if not isinstance(reason, str):
        raise RunError(f"{_FORMS}; deny is {_kind(reason)}")
    return Decision(deny=reason[:_MAX_REASON])


def _kind(output: Any) -> str:
    if isinstance(output, dict):
        return f"an object with {', '.join(map(str, output))[:_SHOWN]}" if output else "an empty object"
    return {bool: "true or false", str: "a text", list: "a list", type(None): "null"}.get(type(output), "a number")
