"""NATS protocol frames as bytes: what a batch publish writes, without a call of the client library per message."""

from collections.abc import Mapping

import msgspec

from crucible_core.subjects import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, MSG_ID, TTL


class Outgoing(msgspec.Struct, frozen=True):
    """A message to store. `msg_id` deduplicates it in the stream's window; `ttl` is a Nats-TTL ("never", "30s")."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = {}
    msg_id: str | None = None
    ttl: str | None = None

    def header_lines(self) -> dict[str, str]:
        lines = dict(self.headers)
        if self.msg_id is not None:
            lines[MSG_ID] = self.msg_id
        if self.ttl is not None:
            lines[TTL] = self.ttl
        return lines


def batch_frames(messages: list[Outgoing], batch_id: str, reply: str) -> bytes:
    """`HPUB` frames of one atomic batch (ADR-50); the first and the last ask for an answer at `reply`."""
    frames = bytearray()
    last = len(messages)
    reply_bytes = reply.encode()
    for place, message in enumerate(messages, 1):
        header = _header(message, batch_id, place, commit=place == last)
        frames += b"HPUB %b " % message.subject.encode()
        if place in (1, last):
            frames += b"%b " % reply_bytes
        frames += b"%d %d\r\n" % (len(header), len(header) + len(message.data))
        frames += header
        frames += message.data
        frames += b"\r\n"
    return bytes(frames)


def _header(message: Outgoing, batch_id: str, place: int, *, commit: bool) -> bytes:
    lines = [f"NATS/1.0\r\n{BATCH_ID}: {batch_id}\r\n{BATCH_SEQUENCE}: {place}\r\n"]
    lines += [f"{name}: {clean(value)}\r\n" for name, value in message.header_lines().items()]
    if commit:
        lines.append(f"{BATCH_COMMIT}: 1\r\n")
    lines.append("\r\n")
    return "".join(lines).encode()


def clean(value: str) -> str:
    """A header value on one line: what comes from users must never begin a header of its own."""
    return value.replace("\r", " ").replace("\n", " ")
