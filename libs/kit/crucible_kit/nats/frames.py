"""NATS protocol frames of published messages as bytes, without the client library's work for each message."""

import functools
import re
from collections.abc import Mapping, Sequence

import msgspec

from crucible_core.errors import InvalidError, TooLargeError
from crucible_core.subjects import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, MSG_ID, TTL

_SUBJECT = re.compile(r"[^\s\x00-\x1f\x7f]{1,1000}")
"""No white space, which would end it, and well below the 4096 bytes that the server takes in a control line."""
_LINE_BREAKS = re.compile(r"[\r\n\0]")


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


def frame(subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str, most: int) -> bytes:
    """A `PUB` or `HPUB` frame. Raises InvalidError, and TooLargeError as `batch_frames` does."""
    head = f"{checked_subject(subject)} {reply} " if reply else f"{checked_subject(subject)} "
    if not headers:
        check_size(len(data), most)
        return b"PUB %b%d\r\n%b\r\n" % (head.encode(), len(data), data)
    lines = "".join([f"{name}: {clean(value)}\r\n" for name, value in headers.items()])
    header = f"NATS/1.0\r\n{lines}\r\n".encode()
    size = len(header) + len(data)
    check_size(size, most)
    return b"HPUB %b%d %d\r\n%b%b\r\n" % (head.encode(), len(header), size, header, data)


def batch_frames(messages: Sequence[Outgoing], batch_id: str, reply: str, most: int) -> bytes:
    """`HPUB` frames of one atomic batch (ADR-50); the first and the last ask for an answer at `reply`.

    Raises TooLargeError for a message of more than `most` bytes: the server would end the connection for it.
    """
    frames: list[bytes] = []
    last = len(messages)
    end, commit = "\r\n", f"{BATCH_COMMIT}: 1\r\n\r\n"
    for subject in {message.subject for message in messages}:
        checked_subject(subject)
    opening = f"NATS/1.0\r\n{BATCH_ID}: {batch_id}\r\n{BATCH_SEQUENCE}: "
    for number, message in enumerate(messages, 1):
        data = message.data
        header = f"{opening}{number}\r\n{_lines(message)}{commit if number == last else end}".encode()
        size = len(header) + len(data)
        if size > most:
            check_size(size, most)
        to = f"{message.subject} {reply}" if number in (1, last) else message.subject
        frames += (f"HPUB {to} {len(header)} {size}\r\n".encode(), header, data, b"\r\n")
    return b"".join(frames)


def _lines(message: Outgoing) -> str:
    lines = f"{MSG_ID}: {clean(message.msg_id)}\r\n" if message.msg_id is not None else ""
    if message.ttl is not None:
        lines += f"{TTL}: {clean(message.ttl)}\r\n"
    if message.headers:
        for name, value in message.headers.items():
            lines += f"{name}: {clean(value)}\r\n"
    return lines


def check_size(size: int, most: int) -> None:
    """Raises TooLargeError: a server that is sent more ends the connection, for good."""
    if size > most:
        raise TooLargeError(f"a message of {size} bytes, at most {most}")


@functools.lru_cache(maxsize=4096)
def checked_subject(subject: str) -> str:
    """The subject, if it is one word. Raises InvalidError."""
    if not _SUBJECT.fullmatch(subject):
        raise InvalidError(f"not a subject: {subject[:100]!r}")
    return subject


def clean(value: str) -> str:
    """A header value on one line: a user's value must never begin a header of its own."""
    if value.isprintable():
        return value
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent
    return _LINE_BREAKS.sub(" ", value)
