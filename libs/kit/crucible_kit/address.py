"""What a URL of NATS servers says: how to log in, and what of it may be shown."""

from typing import Any
from urllib.parse import unquote, urlsplit


def credentials(url: str) -> dict[str, Any]:
    """Those of the first server, for all: the other servers that a cluster tells of come without any."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if not parts.username:
        return {}
    if parts.password is None:
        return {"token": unquote(parts.username)}
    return {"user": unquote(parts.username), "password": unquote(parts.password)}


def without_secrets(url: str) -> str:
    parts = (part.strip().rpartition("://") for part in url.split(","))
    return ",".join(f"{scheme}{separator}{rest.rpartition('@')[2]}" for scheme, separator, rest in parts)
