"""Versions as semver.org (2.0.0) has them, without build metadata: how they are written and which one is later."""

import re

from .errors import FieldError, InvalidError

_NUMBER = r"(0|[1-9]\d{0,8})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?", re.ASCII)
_MAX = 64

Precedence = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]


def precedence(version: str, path: str = "version") -> Precedence:
    """What versions are ordered by. Raises InvalidError for what is no version."""
    found = _VERSION.fullmatch(version) if len(version) <= _MAX else None
    if found is None:
        message = "must be a version such as 1.2.0, or 1.2.0-beta.1"
        raise InvalidError(f"{path}: {message}", errors=[FieldError(path, message)])
    major, minor, patch, early = found.groups()
    parts = tuple(_identifier(part) for part in early.split(".")) if early else ()
    return int(major), int(minor), int(patch), early is None, parts


def _identifier(part: str) -> tuple[bool, int, str]:
    """Numbers come before words, and by their size."""
    return (False, int(part), "") if part.isdecimal() else (True, 0, part)
