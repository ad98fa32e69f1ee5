"""Requests about retention: the rules that say how long which events are kept."""

from typing import Any

from litestar import Response, get, put

from crucible_core.protocol.retention import PutRetention, RetentionRules, RetentionView
from crucible_gateway import examples
from crucible_gateway.body.json import JSON, Http, read_json
from crucible_gateway.context import Nothing, ask
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.routes.headers import IF_MATCH, etag, if_match
from crucible_gateway.routes.replies import reply_json

TAG = "Retention"


@get(
    "/api/v1/retention",
    operation=Operation(
        summary="The rules of retention",
        description="Its ETag goes into the If-Match of a change.",
        tag=TAG,
        reply=RetentionView,
        versioned=True,
        example=examples.RETENTION,
    ),
)
async def get_retention(request: Http) -> Response[Any]:
    return _reply_view(await ask(request, "events", "get_retention", Nothing(), RetentionView))


@put(
    "/api/v1/retention",
    operation=Operation(
        summary="Change the rules of retention",
        description=(
            "The rules take the place of all before them, and hold for events that are written from now on. The "
            "first that fits an event counts; an event's own `forever` goes before them."
        ),
        tag=TAG,
        headers=IF_MATCH,
        bodies={JSON: Body(RetentionRules, examples.RETENTION_RULES)},
        reply=RetentionView,
        versioned=True,
        example=examples.RETENTION,
        errors=("conflict",),
    ),
)
async def put_retention(request: Http) -> Response[Any]:
    body = await read_json(request, RetentionRules)
    change = PutRetention(rules=body.rules, revision=if_match(request))
    return _reply_view(await ask(request, "events", "put_retention", change, RetentionView))


def _reply_view(view: RetentionView) -> Response[bytes]:
    return reply_json(view, headers=etag(view.revision))


HANDLERS = (get_retention, put_retention)
