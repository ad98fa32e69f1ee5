"""The records of the `keys` bucket."""

from .shared import Message


class KeyRecord(Message):
    """An API key under the SHA-256 (hex) of its text, which is never stored."""

    id: str
    name: str
    created_at: str
    disabled: bool = False
