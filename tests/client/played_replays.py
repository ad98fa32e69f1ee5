"""The part of the played gateway that is about replays: each look at one brings it half of the way further."""

from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class Playing(Protocol):
    replays: dict[str, dict[str, Any]]


def replay_routes(played: Playing) -> list[Route]:
    async def start(request: Request) -> Response:
        sent = await request.json()
        if sent["target"].get("hook") == "nobody":
            detail = {"type": "https://crucible.dev/problems/not_found", "detail": "there is no hook 'nobody'"}
            raise HTTPException(404, detail)
        made = replay(f"rpl_{len(played.replays) + 1}", sent)
        played.replays[made["id"]] = made
        return JSONResponse(made, 202)

    async def all_of_them(request: Request) -> Response:
        return JSONResponse({"replays": list(played.replays.values())})

    async def one(request: Request) -> Response:
        found = played.replays[request.path_params["id"]]
        if found["state"] == "running":
            found["progress"] = min(1.0, found["progress"] + 0.5)
            if found["progress"] == 1.0:
                found["state"] = "failed: it broke" if found["target"].get("hook") == "broken" else "done"
        return JSONResponse(found)

    async def steer(request: Request) -> Response:
        found = played.replays[request.path_params["id"]]
        states = {"pause": "paused", "resume": "running", "cancel": "cancelled"}
        found["state"] = states[request.path_params["action"]]
        return JSONResponse(found)

    return [
        Route("/api/v1/events/replay", start, methods=["POST"]),
        Route("/api/v1/replays", all_of_them),
        Route("/api/v1/replays/{id}", one),
        Route("/api/v1/replays/{id}/{action}", steer, methods=["POST"]),
    ]


def replay(id: str, sent: dict[str, Any]) -> dict[str, Any]:
    place = {"from": 0, "to": 9, "position": 4, "total": 9, "matched": 3, "sent": 2, "skipped": 1, "progress": 0.0}
    asked = {"target": sent["target"], "filters": sent.get("filters") or [{"event_type": "*", "filter": {}}]}
    scope = {"rate": sent.get("rate"), "world_id": None, "room_id": None}
    times = {"created_at": "2026-11-21T10:00:00.1Z", "updated_at": "2026-11-21T10:00:00.1Z"}
    return {"id": id, "state": "running", "error": None, **place, **asked, **scope, **times}
