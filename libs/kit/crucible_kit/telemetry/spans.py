"""Telemetry: spans and their W3C trace context (w3.org/TR/trace-context), exported where the OTEL_* variables say so,
beside metrics and logs."""

import contextlib
import functools
import importlib
import logging
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

import msgspec

from crucible_core.subjects import TRACEPARENT
from crucible_kit.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Signal = Literal["traces", "metrics", "logs"]
Attribute = str | bool | int | float | Sequence[str]
Operation = Literal["send", "process"]

SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")
_NOTHING = ("", "none", "prometheus")
"""Prometheus gets its metrics in any case."""
MAX_LINKS = 128
"""Limit of the links of a batch's span, as in OpenTelemetry."""
_USUAL = 64
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)


class TraceContext(NamedTuple):
    """The identity of a span in its trace. `flags` is 1 where the trace is sampled."""

    trace_id: int
    span_id: int
    flags: int

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"


_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current_traceparent() -> str | None:
    """The traceparent of the present task's span; None where it has none."""
    return _current.get()


class Span:
    """A piece of work, timed by `with`. This one is not exported: it only carries the context on.

    `traceparent` goes into whatever the work causes: events, messages, requests.
    """

    __slots__ = ("_before", "traceparent")

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent
        self._before: Token[str | None] | None = None

    def set(self, key: str, value: Attribute | None) -> None:
        """Record an attribute; None records nothing."""

    def fail(self, error_type: str, message: str = "") -> None:
        """Mark the work as failed. `error_type` is one of few: a status, a code, the name of an exception."""

    def __enter__(self) -> Self:
        self._before = _current.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the span; an exception marks it failed and goes on."""
        if self._before is not None:
            with contextlib.suppress(ValueError):  # it ends in another task than it began in
                _current.reset(self._before)


class Traced(Protocol):
    """A message, to be sent or as it arrived. Its traceparent is among its headers, or in the event that it holds."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def data(self) -> bytes: ...


class Telemetry:
    """Makes spans. Without an exporter a span has its parent's context, or a fresh one that is sampled."""

    def span(
        self,
        name: str,
        parent: str | None = None,
        kind: Kind = "internal",
        attributes: Mapping[str, Attribute | None] | None = None,
        links: Sequence[str | None] = (),
    ) -> Span:
        """A span below `parent`, a traceparent from outside; an invalid one is ignored. `links` are the traceparents of
        other work that it serves: one batch serves many."""
        return Span(str(parse_traceparent(parent) or fresh_context()))

    def batch(
        self,
        operation: Operation,
        destination: str,
        messages: "Iterable[Traced]",
        *,
        count: int,
        group: str | None = None,
        parent: str | None = None,
    ) -> contextlib.AbstractContextManager[Span | None]:
        """The span of `count` messages that are sent or processed at once, linked to the trace of each. Without an
        exporter there is none, and the messages are not looked at."""
        return contextlib.nullcontext()

    @property
    def recording(self) -> bool:
        """True if spans are exported; otherwise their attributes need not be computed."""
        return False

    def close(self) -> None:
        """Send what is not sent yet; afterwards nothing is exported. Blocks for a few seconds at most."""


def open_telemetry(service: str, metrics: Metrics | None = None, environ: Mapping[str, str] = os.environ) -> Telemetry:
    """Telemetry for one service; `environ` decides what is exported and by what.

    The exporters read their endpoints, headers, limits and samplers from the process's own environment, as the
    OpenTelemetry SDK always does. What they refuse is one warning, and is not exported: it keeps no service from
    starting.
    """
    names = exporters(environ)
    if not any(names.values()):
        return Telemetry()
    # Loaded by name and only here: the OpenTelemetry SDK and its exporter would cost every idle process memory.
    try:
        exporting = importlib.import_module(".otlp", __package__)
    except Exception as error:  # the SDK reads some variables when it is loaded
        log.warning("OTEL_* variables: OpenTelemetry cannot be loaded, and nothing is exported (%s)", error)
        return Telemetry()
    opened: Telemetry = exporting.open_exporters(service, names, metrics, environ)
    return opened


def exporters(environ: Mapping[str, str]) -> dict[Signal, list[str]]:
    """The names of the exporters that `environ` asks for, as entry points call them; none by default.

    OpenTelemetry's own default is an exporter to localhost; here a variable must name the exporter or its endpoint.
    """
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return {signal: [] if off else _exporters(signal, environ) for signal in SIGNALS}


def _exporters(signal: Signal, environ: Mapping[str, str]) -> list[str]:
    def variable(name: str) -> str:
        return environ.get(name, "").strip()

    upper = signal.upper()
    otlp = "OTEL_EXPORTER_OTLP"
    names = variable(f"OTEL_{upper}_EXPORTER")
    if not names and (variable(f"{otlp}_ENDPOINT") or variable(f"{otlp}_{upper}_ENDPOINT")):
        names = "otlp"
    protocol = variable(f"{otlp}_{upper}_PROTOCOL") or variable(f"{otlp}_PROTOCOL") or "http/protobuf"
    found = [name for name in map(str.strip, names.split(",")) if name not in _NOTHING]
    return [f"otlp {protocol}" if name == "otlp" else name for name in dict.fromkeys(found)]


def message_attributes(
    operation: Operation,
    destination: str,
    *,
    message_id: str | None = None,
    group: str | None = None,
    size: int | None = None,
    count: int | None = None,
) -> dict[str, Attribute | None]:
    """OpenTelemetry's conventions for messaging: what is done with messages of a stream. The span is called
    `<operation> <destination>`. `group` is the consumer, `count` how many messages a batch has."""
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
        "messaging.message.id": message_id,
        "messaging.consumer.group.name": group,
        "messaging.message.body.size": size,
        "messaging.batch.message_count": count,
    }


class _Metadata(msgspec.Struct, frozen=True):
    traceparent: str | None = None


class _Event(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


_event_decoder = msgspec.json.Decoder(_Event)


def traceparent_of(message: Traced) -> str | None:
    """The traceparent that a message carries."""
    if (found := message.headers.get(TRACEPARENT)) is not None:
        return found
    try:
        return _event_decoder.decode(message.data).metadata.traceparent
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def parse_traceparent(text: str | None) -> TraceContext | None:
    """The context in a traceparent, or None where it is not valid. Later versions are read as version 00."""
    if not text:
        return None
    # What senders make as long as they like is not remembered.
    return _remembered(text) if len(text) <= _USUAL else _parsed(text)


def _parsed(text: str) -> TraceContext | None:
    found = _TRACEPARENT.fullmatch(text)
    if not found:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return TraceContext(int(trace, 16), int(span, 16), int(flags, 16) & 1)


_remembered = functools.lru_cache(maxsize=256)(_parsed)
"""All events of a request have the same one."""


def fresh_context() -> TraceContext:
    """The start of a new, sampled trace."""
    return TraceContext(random.getrandbits(127) + 1, random.getrandbits(63) + 1, 1)
