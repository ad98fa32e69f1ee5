"""The floors of a single append: a bare handler that publishes its body to JetStream and answers, as Litestar's (`app`)
and as Starlette's (`starlette`)."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
from litestar import Litestar, Request, post
from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse
from starlette.routing import Route


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    client = await nats.connect(os.environ["BENCH_NATS_URL"])
    app.state.stream = client.jetstream()
    yield
    await client.close()


@post("/")
async def take(request: Request) -> dict[str, int]:
    stored = await request.app.state.stream.publish("floor.single", await request.body())
    return {"sequence": stored.seq}


async def take_plainly(request: Asked) -> JSONResponse:
    stored = await request.app.state.stream.publish("floor.single", await request.body())
    return JSONResponse({"sequence": stored.seq}, 201)


app = Litestar([take], lifespan=[lifespan], openapi_config=None)
starlette = Starlette(routes=[Route("/", take_plainly, methods=["POST"])], lifespan=lifespan)
