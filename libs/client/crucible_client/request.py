"""A request to the gateway, and the small parts that `calls` builds them of."""

import inspect
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from crucible_client.response import read_as
from crucible_core.errors import InvalidError

T = TypeVar("T")
Json = Mapping[str, Any]

JSON: Mapping[str, str] = {"content-type": "application/json"}


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request. `repeatable` says that it may safely arrive twice, so that a lost answer can be asked for again."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = {}
    content: bytes | None = None
    repeatable: bool = True


def request_of(http: httpx.Client | httpx.AsyncClient, call: Call[Any], timeout: httpx.Timeout) -> httpx.Request:
    """`call` as httpx sends it."""
    return http.build_request(
        call.method,
        call.path,
        params=call.params,
        headers=dict(call.headers),
        content=call.content,
        timeout=timeout,
    )


def described(method: Callable[..., Any], call: Callable[..., Any]) -> None:
    """Gives a client's method the documentation and the parameters of the call that it sends."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *inspect.signature(call).parameters.values()]
    method.__doc__ = call.__doc__
    method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


def get(
    path: str,
    read: Callable[[bytes], T],
    *,
    params: tuple[tuple[str, str], ...] = (),
    headers: Mapping[str, str] | None = None,
) -> Call[T]:
    return Call("GET", path, read, params=params, headers=headers or {})


def post(
    path: str,
    body: Any,
    read: Callable[[bytes], T],
    *,
    params: tuple[tuple[str, str], ...] = (),
    headers: Mapping[str, str] | None = None,
    repeatable: bool = True,
) -> Call[T]:
    content = None if body is None else msgspec.json.encode(body)
    described = {} if body is None else dict(JSON)
    return Call("POST", path, read, params, described | dict(headers or {}), content, repeatable)


def patch(path: str, changes: Any, read: Callable[[bytes], T], *, headers: Mapping[str, str] | None = None) -> Call[T]:
    """A merge patch; not sent twice, since between the two somebody else may have changed the same."""
    return Call("PATCH", path, read, (), {**JSON, **(headers or {})}, msgspec.json.encode(changes), repeatable=False)


def delete(path: str, *, headers: Mapping[str, str] | None = None) -> Call[None]:
    return Call("DELETE", path, lambda _raw: None, headers=headers or {}, repeatable=False)


def reads(kind: type[T]) -> Callable[[bytes], T]:
    return lambda raw: read_as(raw, kind)


def present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def params_of(**fields: str | int | None) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in fields.items() if value is not None)


def types_of(types: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(("type", name) for name in types)


def json_text(value: Json | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def keyed(key: str | None) -> Mapping[str, str]:
    return {"idempotency-key": key or uuid.uuid4().hex}


def if_match(sequence: int | None) -> dict[str, str]:
    return {} if sequence is None else {"if-match": f'"{sequence}"'}


def segment(text: str) -> str:
    """`text` as a part of a path. Raises InvalidError where it would name another path."""
    if text in ("", ".", ".."):
        raise InvalidError(f'"{text}" is no id and no name')
    return quote(text, safe="")
