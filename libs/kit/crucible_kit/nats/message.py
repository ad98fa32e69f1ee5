"""Messages from the bus, and their metadata in JetStream's reply subjects."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from crucible_core import subjects

Handler = Callable[["Message"], Awaitable[None]]
Receiver = Callable[["Message"], None]


class Message(msgspec.Struct, frozen=True):
    """A message from the bus. `sequence`, `time_ms` and the rest are set where it came from a stream: those of the log
    have sequences that are unique in all of it.

    `pending` counts what the consumer has not delivered yet; `delivered` is 1 for the first delivery.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str] = {}
    reply: str = ""
    sequence: int = 0
    time_ms: int = 0
    delivered: int = 0
    pending: int = 0
    consumer_sequence: int = 0

    @property
    def status(self) -> str | None:
        """A JetStream status such as "404", for messages that carry no data."""
        return None if self.sequence else self.headers.get(subjects.STATUS)


DISCONNECTED = Message("", b"", {subjects.STATUS: "503", subjects.DESCRIPTION: "disconnected"})
"""Stands for an answer when the connection breaks."""


class Stored(msgspec.Struct, frozen=True):
    """The sequence of a stored message. `duplicate`: its id was known, and this is the sequence of the first one."""

    sequence: int
    duplicate: bool = False


def message_of(subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str) -> Message:
    """A message as it arrived; a stream's message carries its metadata in the reply subject (ADR-15)."""
    if not reply.startswith(subjects.ACK_PREFIX):
        return Message(subject, data, headers or {}, reply)
    fields = reply.split(".")
    at = 2 if len(fields) == 9 else 4  # a domain and an account may come before
    delivered, sequence, consumer_sequence, time_ns, pending = map(int, fields[at + 2 : at + 7])
    return Message(
        subject,
        data,
        headers or {},
        reply,
        subjects.first_of(fields[at]) + sequence,
        time_ns // 1_000_000,
        delivered,
        pending,
        consumer_sequence,
    )
