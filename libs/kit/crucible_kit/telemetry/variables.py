"""Checks of the standard OTEL_* variables: each mistake in words, with the value that holds instead. The SDK says
little, or repeats a header that may be a secret."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from crucible_core.suggest import did_you_mean
from crucible_kit.telemetry.spans import Signal

_OTLP = "OTEL_EXPORTER_OTLP"
_BASES = ("always_on", "always_off", "traceidratio")
_SAMPLERS = (*_BASES, *(f"parentbased_{name}" for name in _BASES))
_COMPRESSIONS = ("none", "gzip", "deflate")
_NUMBERS = re.compile(r"OTEL_(BSP|BLRP)_\w+|OTEL_EXPORTER_OTLP_(\w+_)?TIMEOUT")
_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?HEADERS")
_COMPRESSION = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?COMPRESSION")
_FILES = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?(CERTIFICATE|CLIENT_KEY)")
_PORT = 4318


def mistakes(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that is not understood. None of them keeps anything from being exported."""
    values = [(name, value.strip()) for name, value in sorted(environ.items()) if value.strip()]
    return [wrong for name, value in values for wrong in _wrong(name, value)]


def endpoint_mistake(signal: Signal, environ: Mapping[str, str]) -> str | None:
    """The mistake in the endpoint of a signal over HTTP; None where it is valid."""
    for name in (f"{_OTLP}_{signal.upper()}_ENDPOINT", f"{_OTLP}_ENDPOINT"):
        if value := environ.get(name, "").strip():
            return None if _is_url(value) else f"{name}={value} is no URL; write it as http://HOST:{_PORT}"
    return None


def _wrong(name: str, value: str) -> Iterator[str]:
    # A header's value may be a secret.
    shown = name if _HEADERS.fullmatch(name) else f"{name}={value}"
    for applies, check in _CHECKS:
        if applies(name) and (wrong := check(value)):
            yield f"{shown} {wrong}"


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_sampler(value: str) -> str | None:
    if value.lower() in _SAMPLERS:
        return None
    return f"is no sampler{did_you_mean(value, _SAMPLERS)}; parentbased_always_on holds: everything is sampled"


def _check_ratio(value: str) -> str | None:
    return None if _is_number(value) and 0 <= float(value) <= 1 else "is not between 0 and 1; 1 holds"


def _check_pairs(value: str) -> str | None:
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    return None if all(key.strip() and equals for key, equals, _ in pairs) else "is no list of name=value,name=value"


def _check_disabled(value: str) -> str | None:
    return None if value.lower() in ("true", "false") else "is neither true nor false; nothing is disabled"


def _check_compression(value: str) -> str | None:
    return None if value.lower() in _COMPRESSIONS else f"is none of {', '.join(_COMPRESSIONS)}; none holds"


def _check_number(value: str) -> str | None:
    return None if _is_number(value) else "is no number; the default holds"


def _check_file(value: str) -> str | None:
    return None if Path(value).is_file() else "is no file that can be read"


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


_CHECKS: tuple[tuple[Callable[[str], object], Callable[[str], str | None]], ...] = (
    ("OTEL_TRACES_SAMPLER".__eq__, _check_sampler),
    ("OTEL_TRACES_SAMPLER_ARG".__eq__, _check_ratio),
    ("OTEL_RESOURCE_ATTRIBUTES".__eq__, _check_pairs),
    ("OTEL_SDK_DISABLED".__eq__, _check_disabled),
    (_HEADERS.fullmatch, _check_pairs),
    (_COMPRESSION.fullmatch, _check_compression),
    (_NUMBERS.fullmatch, _check_number),
    (_FILES.fullmatch, _check_file),
)
