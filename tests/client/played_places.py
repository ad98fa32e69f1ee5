"""Worlds, rooms and retention of the gateway that `playing` plays."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

AT = "2026-11-21T10:00:00.000000Z"


class Places:
    """What the played gateway knows; `rules` are at `revision`."""

    def __init__(self) -> None:
        self.worlds: dict[str, dict[str, Any]] = {"default": _world("default")}
        self.rules: list[dict[str, Any]] = []
        self.revision = 0


def place_routes(places: Places) -> list[Route]:
    async def worlds(request: Request) -> Response:
        if request.method == "GET":
            after = request.query_params.get("cursor", "")
            found = [places.worlds[id] for id in sorted(places.worlds) if id > after]
            page = found[: int(request.query_params.get("limit", 100))]
            return JSONResponse({"worlds": page, "next_cursor": page[-1]["id"] if len(page) < len(found) else None})
        sent = await request.json()
        made = sent["id"] not in places.worlds
        world = places.worlds.setdefault(sent["id"], _world(sent["id"], sent["description"]))
        return JSONResponse(world, 201 if made else 200)

    async def world(request: Request) -> Response:
        id = request.path_params["world"]
        if id not in places.worlds:
            return _missing(f"there is no world {id}")
        if request.method == "DELETE":
            del places.worlds[id]
            return Response(status_code=204)
        return JSONResponse(places.worlds[id])

    async def rooms(request: Request) -> Response:
        found = places.worlds[request.path_params["world"]]["rooms"]
        if request.method == "GET":
            return JSONResponse({"rooms": found})
        found.append({"id": (await request.json())["id"], "created_at": AT})
        return JSONResponse(found[-1], 201)

    async def room(request: Request) -> Response:
        there = places.worlds[request.path_params["world"]]
        there["rooms"] = [one for one in there["rooms"] if one["id"] != request.path_params["room"]]
        return Response(status_code=204)

    async def retention(request: Request) -> Response:
        if request.method == "PUT":
            if request.headers.get("if-match", f'"{places.revision}"') != f'"{places.revision}"':
                detail = {"type": "https://x/conflict", "detail": f"the rules are at revision {places.revision}"}
                return JSONResponse(detail, 409, media_type="application/problem+json")
            places.rules = [{"world_id": None, **rule} for rule in (await request.json())["rules"]]
            places.revision += 1
        return JSONResponse({"rules": places.rules, "default": "30d", "revision": places.revision})

    return [
        Route("/api/v1/worlds", worlds, methods=["GET", "POST"]),
        Route("/api/v1/worlds/{world}", world, methods=["GET", "DELETE"]),
        Route("/api/v1/worlds/{world}/rooms", rooms, methods=["GET", "POST"]),
        Route("/api/v1/worlds/{world}/rooms/{room}", room, methods=["DELETE"]),
        Route("/api/v1/retention", retention, methods=["GET", "PUT"]),
    ]


def _world(id: str, description: str = "") -> dict[str, Any]:
    return {"id": id, "description": description, "created_at": AT, "rooms": [{"id": "main", "created_at": AT}]}


def _missing(detail: str) -> Response:
    return JSONResponse({"type": "https://x/not_found", "detail": detail}, 404, media_type="application/problem+json")
