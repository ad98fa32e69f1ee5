"""The running gateway as route handlers see it, and their questions to services on behalf of a request."""

from typing import Any, TypeVar

import msgspec
from litestar.connection import ASGIConnection

from crucible_core.access import Principal
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.protocol.parts import Trouble
from crucible_core.protocol.worlds import PlaceRequest
from crucible_gateway.appends import Appends
from crucible_gateway.auth import Keys, principal_of
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.replays import Recipients
from crucible_gateway.middleware import traceparent_of
from crucible_gateway.settings import Settings
from crucible_kit.http.asgi import unready
from crucible_kit.losses import Losses
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry
from crucible_kit.types import Types

Connection = ASGIConnection[Any, Any, Any, Any]
Reply = TypeVar("Reply")
_PATIENCE_S = 5.0
_ALWAYS_THERE = ((None, None), (DEFAULT_WORLD, None), (None, DEFAULT_ROOM), (DEFAULT_WORLD, DEFAULT_ROOM))


class Gateway(msgspec.Struct, frozen=True):
    """Everything that is open while the app runs; it is `app.state.gateway`."""

    settings: Settings
    bus: Bus
    telemetry: Telemetry
    metrics: Metrics
    keys: Keys
    hub: Hub
    recipients: Recipients
    types: Types
    losses: Losses
    appends: Appends

    def waiting_for(self) -> list[str]:
        """The parts that are not there yet; empty when ready."""
        parts = {"nats": self.bus.connected, "keys": self.keys.caught_up, "event types": self.types.view.ready}
        return unready(parts)

    def troubles(self) -> list[Trouble]:
        """Troubles that do not pass by themselves."""
        return [*self.bus.storage.troubles(), *self.losses.troubles()]


class Nothing(msgspec.Struct):
    """A request that asks for all there is."""


def gateway_of(connection: Connection) -> Gateway:
    found: Gateway = connection.app.state.gateway
    return found


async def ask(
    connection: Connection, service: str, operation: str, request: msgspec.Struct, reply: type[Reply]
) -> Reply:
    """A service's answer within the request's trace. Raises what the service raised, or UnavailableError."""
    gateway = gateway_of(connection)
    return await call(
        gateway.bus,
        principal_of(connection),
        service,
        operation,
        request,
        reply,
        timeout=gateway.settings.request_timeout_s,
        traceparent=traceparent_of(connection.scope),
    )


async def check_place(bus: Bus, principal: Principal, world_id: str | None, room_id: str | None) -> None:
    """Raises InvalidError, with the nearest name, where there never was such a world or room that the principal may
    see. None is any."""
    if not principal.scope.everything or (world_id, room_id) not in _ALWAYS_THERE:
        asked = PlaceRequest(world_id=world_id, room_id=room_id)
        await call(bus, principal, "events", "place", asked, bytes, timeout=_PATIENCE_S)
