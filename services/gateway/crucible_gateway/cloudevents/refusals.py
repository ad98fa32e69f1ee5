"""The log's refusals of a CloudEvent, told in the names that its producer knows."""

import re
from collections.abc import Awaitable, Callable

import msgspec

from crucible_core.errors import CrucibleError, Problem
from crucible_core.protocol.events import AppendReply, AppendRequest

Append = Callable[[AppendRequest], Awaitable[AppendReply]]

_PLACE = re.compile(r"(events\.\d+\.)?(.*)", re.DOTALL)
_ATTRIBUTES = {
    "payload": "data",
    "timestamp": "time",
    "version": "crucibleversion",
    "source.id": "source",
    "actor": "authid",
    "correlation_id": "correlationid",
    "causation_id": "causationid",
    "hop": "cruciblehop",
    "world_id": "worldid",
    "room_id": "roomid",
    "entity": "subject",
    "idempotency_key": "id",
    "originalid": "id",
}


def in_their_words(append: Append) -> Append:
    """`append`, whose refusals name attributes."""

    async def appended(request: AppendRequest) -> AppendReply:
        try:
            reply = await append(request)
        except CrucibleError as error:
            if not error.errors:
                raise
            told = _told(error.problem())
            raise type(error)(told.detail, errors=told.errors, **error.extra) from None
        for result in reply.results:
            if result.error is not None:
                result.error = _told(result.error)
        return reply

    return appended


def _told(problem: Problem) -> Problem:
    detail, errors = problem.detail, []
    for error in problem.errors:
        path = _attribute(error.path)
        detail = detail.replace(f"{error.path}: ", f"{path}: ")
        errors.append(msgspec.structs.replace(error, path=path))
    return msgspec.structs.replace(problem, detail=detail, errors=tuple(errors))


def _attribute(path: str) -> str:
    found = _PLACE.fullmatch(path)
    assert found is not None
    place, inner = found[1] or "", found[2].removeprefix("extensions.")
    for field, attribute in _ATTRIBUTES.items():
        if inner == field or inner.startswith(f"{field}."):
            return f"{place}{attribute}{inner.removeprefix(field)}"
    return place + inner
