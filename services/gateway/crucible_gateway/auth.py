"""API keys: those that exist, by a watch of the `keys` bucket, and the principal of each request."""

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Send
from litestar.types import Scope as Connected

from crucible_core.access import NOTHING, KeyRecord, Principal, Scope, Sight
from crucible_core.errors import ConflictError, UnauthenticatedError, UnavailableError
from crucible_core.limits import API_KEY_CHARS
from crucible_kit.buckets import Bucket
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.principals import Principals, read_key

log = logging.getLogger(__name__)

ADMIN = "admin"


def key_hash(key: str) -> str:
    """Under what the bucket holds a key: the SHA-256 (hex) of its text."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    """The keys that exist. A look-up by hash takes the same time however much of a wrong key is right."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.principals = Principals(bucket)
        self.follow = self.principals.view.follow

    @property
    def caught_up(self) -> bool:
        return self.principals.view.ready

    async def ensure_admin(self, key: str) -> KeyRecord | None:
        """Makes `key` admin's only one: those that admin had before end. None where it is known already."""
        mine, entries = key_hash(key), await self._bucket.entries()
        records = {name: record for name, entry in entries.items() if (record := read_key(name, entry.value))}
        made = None
        if mine not in records or records[mine].disabled:
            made = KeyRecord(id=fresh_id("key"), name=ADMIN, created_at=timestamp())
            await self._bucket.put(mine, msgspec.json.encode(made))
            log.info("made the API key %s", ADMIN)
        for name, record in records.items():
            if name != mine and record.name == ADMIN and not record.disabled:
                ended = msgspec.structs.replace(record, disabled=True)
                with contextlib.suppress(ConflictError):  # somebody else has ended it
                    await self._bucket.update(name, msgspec.json.encode(ended), entries[name].revision)
                log.warning("a former API key of %s has ended", ADMIN)
        return made

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Raises UnauthenticatedError, or UnavailableError while the keys are not known yet."""
        key = _read_api_key(headers)
        if not self.caught_up:
            raise UnavailableError("the API keys are not read yet", retry_after=1)
        principal = self.principals.holder(key_hash(key))
        if principal is None:
            raise UnauthenticatedError("this API key is not known, or disabled")
        return principal

    def sight(self, headers: Mapping[str, str]) -> Sight:
        """For what lasts longer than a request: a key that has ended shows nothing any more."""
        key = key_hash(_read_api_key(headers))

        def now() -> Scope:
            holder = self.principals.holder(key)
            return NOTHING if holder is None else holder.scope

        return now


def _read_api_key(headers: Mapping[str, str]) -> str:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    key = credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    if not key:
        raise UnauthenticatedError('send an API key: "Authorization: Bearer <key>" or "X-API-Key: <key>"')
    if len(key) > API_KEY_CHARS:
        raise UnauthenticatedError("this API key is not known, or disabled")
    return key


class Authentication(ASGIMiddleware):
    """Leaves the `Principal` in `scope["user"]`. A Litestar guard would cost a copy of the handler for each request."""

    async def handle(self, scope: Connected, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        keys: Keys = scope["litestar_app"].state.gateway.keys
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        scope["user"] = keys.authenticate(headers)
        await next_app(scope, receive, send)


def principal_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
    found: Principal = connection.scope["user"]
    return found
