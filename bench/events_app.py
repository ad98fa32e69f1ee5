"""The floor of a single append: a bare Litestar handler that publishes its body to JetStream and answers."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from litestar import Litestar, Request, post


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    client = await nats.connect(os.environ["BENCH_NATS_URL"])
    app.state.stream = client.jetstream()
    yield
    await client.close()


@post("/")
async def take(request: Request) -> dict[str, int]:
    stored = await request.app.state.stream.publish("floor.single", await request.body())
    return {"sequence": stored.seq}


app = Litestar([take], lifespan=[lifespan], openapi_config=None)
