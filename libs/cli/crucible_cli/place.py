"""Where the gateway is and which key opens it: options, else the environment, else the `up` of this machine."""

import os
from collections.abc import Mapping

import msgspec

from crucible_client.settings import DEFAULT_URL

from .state import DataDir, UpState, read_admin_key


class Place(msgspec.Struct, frozen=True):
    url: str
    api_key: str | None


def find_place(url: str | None, key: str | None, data: DataDir, environ: Mapping[str, str]) -> Place:
    """The gateway and the key. The key of a local `up` is sent to that `up` only."""
    up = running(data)
    chosen = (url or environ.get("CRUCIBLE_URL") or (up.url if up else DEFAULT_URL)).rstrip("/")
    api_key = key or environ.get("CRUCIBLE_API_KEY")
    if not api_key and up and chosen == up.url.rstrip("/"):
        api_key = read_admin_key(data)
    return Place(chosen, api_key or None)


def running(data: DataDir) -> UpState | None:
    """The `crucible up` that runs on this data, or None; what a killed one left behind does not count."""
    try:
        state = msgspec.json.decode(data.up_file.read_bytes(), type=UpState)
        os.kill(state.pid, 0)
    except (OSError, msgspec.DecodeError):
        return None
    return state
