"""JSON Merge Patch (RFC 7396)."""

from collections.abc import Mapping
from typing import Any


def merge_patch(target: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """`target` with what `patch` names changed: an object is merged, `null` removes, all else replaces. Neither of the
    arguments is changed. By RFC 7396, section 2."""
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value) if isinstance(value, Mapping) else value
    return merged
