"""The state of one live stream: its position, and the wait before the next connection. No I/O; both clients drive
it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from crucible_client.calls.events import stream_events
from crucible_client.request import Call, Json
from crucible_client.response import error_from, read_as
from crucible_client.retries import Backoff
from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError
from crucible_core.position import stream_number


class Notice(msgspec.Struct, frozen=True):
    """A stream's remark besides its events.

    `caught_up`: everything up to `sequence` was given, what follows is live. `gap`: the reader was so slow that
    `dropped` events left its queue; they are read from the log, so that none is missed. `away`: the connection broke
    for the reason in `detail`, and is made again. `warned`: `detail` says why some of what is wanted may never come.
    """

    kind: Literal["caught_up", "gap", "away", "warned"]
    sequence: int | None = None
    dropped: int | None = None
    detail: str = ""


OnNotice = Callable[[Notice], object]


class Subscription:
    """Follows the position in the log through a stream's frames, so that a broken one resumes with no hole and no
    repeat. It is a sequence, or where the log is several streams, a position that the frames tell."""

    def __init__(
        self,
        types: Sequence[str],
        filter: Json | None,
        start: str | int,
        patience_s: float | None,
        *,
        world_id: str | None = None,
        room_id: str | None = None,
        on_notice: OnNotice | None = None,
    ) -> None:
        self._types, self._filter, self._start = tuple(types), filter, start
        self._world_id, self._room_id = world_id, room_id
        self._backoff = Backoff(patience_s)
        self._on_notice = on_notice
        self._last: str | int | None = None
        self._seen: dict[int, int] = {}
        """The last sequence of each stream."""
        self._warned: set[str] = set()

    def call(self) -> Call[bytes]:
        """The request that starts the stream, or resumes it after the last sequence seen."""
        return stream_events(self._types, self._filter, self._start, self._last, self._world_id, self._room_id)

    def message(self) -> str:
        """The same as what to say on a WebSocket."""
        filters = [{"event_type": name, "filter": self._filter or {}} for name in self._types or ("*",)]
        scope = {"world_id": self._world_id, "room_id": self._room_id}
        wish = {
            "action": "subscribe",
            "filters": filters,
            "from": self._start if self._last is None else self._last,
            **{name: value for name, value in scope.items() if value is not None},
        }
        return msgspec.json.encode(wish).decode()

    def opened(self) -> None:
        """The gateway has accepted the stream."""
        self._backoff.succeeded()

    def take(self, name: str, data: str | bytes, id: str = "") -> Event | None:
        """The event in a frame, if it has one that was not seen yet. `id` is that of a server-sent frame."""
        raw = data.encode() if isinstance(data, str) else data
        frame = read_as(raw, dict[str, Any]) if raw.strip() else {}
        kind = name if name in ("gap", "error", "caught_up", "subscribed") else frame.get("type")
        if kind == "error":
            raise error_from(frame.get("error") or frame)
        if kind == "subscribed":
            self._warn(frame.get("warnings") or [])
        if kind == "gap":
            self._tell(Notice("gap", dropped=frame.get("dropped")))
        event = _event_in(frame)
        sequence = frame.get("sequence") if event is None else event.sequence
        if not isinstance(sequence, int):
            return event
        stream = stream_number(sequence)
        if event is not None and sequence <= self._seen.get(stream, -1):
            return None
        self._seen[stream] = max(sequence, self._seen.get(stream, 0))
        position = frame.get("position") or (id if "." in id else None)
        self._last = position or self._seen[stream]
        if kind == "caught_up":
            self._tell(Notice("caught_up", sequence=sequence))
        return event

    def failed(self, error: CrucibleError, at_s: float) -> float:
        """Seconds until the next connection; `at_s` is a monotonic time. Raises `error` when it is time to give up.

        A stream that never opened fails at once, and so does one that is refused for another reason than being away.
        """
        wait = self._backoff.wait_s(error, at_s)
        self._tell(Notice("away", detail=error.detail))
        return wait

    def _warn(self, warnings: Sequence[str]) -> None:
        """Once, however often the stream is made again."""
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._tell(Notice("warned", detail=warning))

    def _tell(self, notice: Notice) -> None:
        if self._on_notice is not None:
            self._on_notice(notice)


def _event_in(frame: dict[str, Any]) -> Event | None:
    found = frame if "metadata" in frame else frame.get("event")
    if not isinstance(found, dict):
        return None
    try:
        event = msgspec.convert(found, Event)
    except msgspec.ValidationError as error:
        raise CrucibleError(
            "the stream sent an event that does not read: is the gateway of the same version?"
        ) from error
    if event.sequence is None and isinstance(frame.get("sequence"), int):
        return msgspec.structs.replace(event, sequence=frame["sequence"])
    return event
