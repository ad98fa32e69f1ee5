"""What `servers` serves: a Litestar handler that decodes a body with msgspec and answers."""

import msgspec
from litestar import Litestar, Request, post


class Body(msgspec.Struct):
    type: str
    payload: msgspec.Raw


@post("/")
async def take(request: Request) -> dict[str, str]:
    body = msgspec.json.decode(await request.body(), type=Body)
    return {"type": body.type}


app = Litestar([take], openapi_config=None)
