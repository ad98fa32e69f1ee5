"""Tracing: spans and their W3C trace context (w3.org/TR/trace-context), exported where the OTEL_* variables say so."""

import functools
import importlib
import os
import random
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | bool | int | float | Sequence[str]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_USUAL = 64
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)


class TraceContext(NamedTuple):
    """A place in a trace. `flags` is 1 where the trace is sampled."""

    trace_id: int
    span_id: int
    flags: int

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"


class Span:
    """A piece of work, timed by `with`. This one is not exported: it only carries the context on.

    `traceparent` goes into whatever the work causes: events, messages, requests.
    """

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def set(self, key: str, value: Attribute | None) -> None:
        """Record an attribute; None records nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the span; an exception marks it failed and goes on."""


class Telemetry:
    """Makes spans. Without an exporter a span has its parent's context, or a fresh one that is sampled."""

    def span(
        self,
        name: str,
        parent: str | None = None,
        kind: Kind = "internal",
        attributes: Mapping[str, Attribute | None] | None = None,
    ) -> Span:
        """A span below `parent`, a traceparent from outside: one that is not valid is as good as none."""
        return Span(str(parse_traceparent(parent) or fresh_context()))

    def close(self) -> None:
        """Send what is not sent yet; afterwards spans are not exported. Blocks for a few seconds at most."""


def open_telemetry(service: str, environ: Mapping[str, str] = os.environ) -> Telemetry:
    """Tracing for one service; `environ` decides whether spans are exported and by what.

    The exporters read their endpoints, headers, limits and samplers from the process's own environment, as the
    OpenTelemetry SDK always does. Raises `InvalidError` for an exporter that is not installed.
    """
    names = exporters(environ)
    if not names:
        return Telemetry()
    # Loaded by name and only here: the OpenTelemetry SDK and its exporter would cost every idle process memory.
    opened: Telemetry = importlib.import_module(".exporting", __package__).ExportingTelemetry(service, names)
    return opened


def exporters(environ: Mapping[str, str]) -> list[str]:
    """The names of the span exporters that `environ` asks for, as entry points call them; none by default.

    OpenTelemetry's own default is an exporter to localhost; here a variable must name the exporter or its endpoint.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    wanted = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not wanted and any(environ.get(name, "").strip() for name in _ENDPOINTS):
        wanted = "otlp"
    names = (name.strip() for name in wanted.split(","))
    return [_otlp(environ) if name == "otlp" else name for name in names if name and name != "none"]


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


def _otlp(environ: Mapping[str, str]) -> str:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    return "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
