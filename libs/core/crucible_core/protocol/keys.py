"""The records of the `keys` bucket."""

from crucible_core.access import OPERATOR_ID, Grant, Principal

from .shared import Message


class KeyRecord(Message):
    """An API key under the SHA-256 (hex) of its text, which is never stored. It is its `principal`'s, by default the
    user of its name, and has the `grants`; all rights where they are None. `owner` is who made it."""

    id: str
    name: str
    created_at: str
    disabled: bool = False
    principal: str = ""
    grants: list[Grant] | None = None
    owner: str = OPERATOR_ID

    def holder(self) -> Principal:
        return Principal(self.principal or f"user:{self.name}", self.grants)
