"""The gateway's URL and the key: from arguments, else from CRUCIBLE_URL and CRUCIBLE_API_KEY."""

from collections.abc import Mapping

import httpx
import msgspec

from crucible_core.errors import InvalidError

DEFAULT_URL = "http://127.0.0.1:8080"


class ClientSettings(msgspec.Struct, frozen=True):
    """`url` has no slash at its end; `api_key` may be None where the gateway asks for none."""

    url: str = DEFAULT_URL
    api_key: str | None = None


def settings_from(url: str | None, api_key: str | None, environ: Mapping[str, str]) -> ClientSettings:
    """The settings; an argument wins over the environment. Raises InvalidError for a URL that is not HTTP."""
    chosen = (url or environ.get("CRUCIBLE_URL") or DEFAULT_URL).strip().rstrip("/")
    if not chosen.startswith(("http://", "https://")):
        message = f'"{chosen}" is not an http:// or https:// URL'
        raise InvalidError.field("url", message, f"http://{chosen}", detail=message)
    if not _is_url(chosen):
        message = f'"{chosen}" is no URL: its host or its port cannot be read'
        raise InvalidError.field("url", message, detail=message)
    key = (api_key or environ.get("CRUCIBLE_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable()):
        message = "the API key has characters that no key has"
        raise InvalidError.field("api_key", message, detail=message)
    return ClientSettings(chosen, key or None)


def _is_url(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return bool(url.host) and (url.port is None or 0 < url.port < 65536)
