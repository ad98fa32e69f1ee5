"""Where the gateway is and which key opens it: options, else the environment, else the `up` of this machine."""

import os
from collections.abc import Mapping

import msgspec

from crucible_client.settings import DEFAULT_URL
from crucible_core.errors import InvalidError

from .files import read_bytes
from .state import DataDir, UpState, read_admin_key

_UP_FILE_BYTES = 64 * 1024


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
        state = msgspec.json.decode(read_bytes(data.up_file, _UP_FILE_BYTES), type=UpState)
        os.kill(state.pid, 0)
    except (OSError, InvalidError, msgspec.DecodeError):
        return None
    return state
