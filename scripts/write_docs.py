"""Writes docs/settings.md, docs/limits.md and docs/events.md from the settings, the limits and the catalogue."""

import ast
import importlib
import re
import sys
from pathlib import Path

from crucible_core import limits
from crucible_core.protocol.events import EventType
from crucible_core.types.catalogue import CATALOGUE
from crucible_kit.settings import KitSettings, Setting, describe

DOCS = Path(__file__).parents[1] / "docs"
_HEADING = re.compile(r"^# ---- (.+) ----$", re.MULTILINE)
_SIZES = ((1024 * 1024, "MiB"), (1024, "KiB"), (1, "B"))
SERVICES = ("gateway", "events", "hooks", "webhooks", "memory")
OF_UP = (
    Setting(
        "CRUCIBLE_NATS_SYNC",
        "`always` or a duration",
        "always",
        "",
        "How often the embedded NATS server syncs to disk; `always` survives a power cut",
    ),
)
OF_CLIENTS = (
    Setting("CRUCIBLE_URL", "text", "http://127.0.0.1:8080", "", "Where the gateway is, for the CLI and the SDK"),
    Setting("CRUCIBLE_API_KEY", "text", "", "", "The API key of the CLI and the SDK; a local `up` is found without"),
)


def settings_page() -> str:
    parts = [
        "# Settings",
        "",
        "Every setting is an environment variable. `crucible up` decides the addresses, ports and directories of the"
        " services that it starts, and hands everything else on to them. This page is written by `scripts/docs`.",
        "",
        "Tracing follows the standard `OTEL_*` variables of OpenTelemetry.",
        *_table("Every service", describe(KitSettings)),
    ]
    common = {setting.name for setting in describe(KitSettings)}
    for service in SERVICES:
        kind = importlib.import_module(f"crucible_{service}.settings").Settings
        own = [setting for setting in describe(kind) if setting.name not in common]
        parts += _table(service, own) if own else []
    parts += _table("`crucible up`", OF_UP) + _table("The CLI and the SDK", OF_CLIENTS)
    return "\n".join(parts) + "\n"


def limits_page() -> str:
    source = Path(limits.__file__).read_text()
    headings = {source.count("\n", 0, found.start()) + 1: found[1] for found in _HEADING.finditer(source)}
    parts = [
        "# Limits",
        "",
        "Limits and defaults that are no [settings](settings.md). This page is written by `scripts/docs` from"
        " `crucible_core/limits.py`.",
    ]
    for name, line, reason in _limits(source):
        for heading in [headings.pop(start) for start in sorted(headings) if start < line]:
            parts += ["", f"## {heading}", "", "| limit | value | of what, and why |", "|---|---|---|"]
        parts.append(f"| `{name}` | {_value(name, getattr(limits, name))} | {_cell(reason)} |")
    return "\n".join(parts) + "\n"


def _limits(source: str) -> list[tuple[str, int, str]]:
    """The name, line and docstring of each public constant. Raises ValueError for one without a docstring."""
    body = ast.parse(source).body
    found = []
    for node, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.Assign) or (name := ast.unparse(node.targets[0])).startswith("_"):
            continue
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
            raise ValueError(f"{name} has no unit and reason below it")
        found.append((name, node.lineno, str(below.value.value)))
    return found


def _value(name: str, value: object) -> str:
    """With the unit that the end of the name says, or the docstring where it says none."""
    if isinstance(value, int | float):
        if name.endswith("_BYTES") or "_BYTES_" in name:
            return next(f"{value // size:,} {unit}" for size, unit in _SIZES if value >= size and not value % size)
        unit = next((unit for end, unit in (("_MS", " ms"), ("_S", " s")) if name.endswith(end)), "")
        return f"{value:,g}{unit}" if value < 10**6 else f"{int(value):,}{unit}"
    return ", ".join(f"{each:g}" if isinstance(each, float) else f"`{each}`" for each in sorted(value))


def events_page() -> str:
    parts = [
        "# Event types",
        "",
        "The catalogue: each type, the fields of its payload, and the other names that it goes by. `GET"
        " /api/v1/event-types` has the JSON Schema of every payload. This page is written by `scripts/docs`.",
        "",
        "**Bold** fields are required. A field's other names stand in parentheses: they are accepted, stored under the"
        " first, and filters find either. A payload with any other field is refused, but where it ends with `…`.",
    ]
    category = ""
    for kind in CATALOGUE.types():
        if kind.type.partition(".")[0] != category:
            category = kind.type.partition(".")[0]
            parts += ["", f"## {category}", "", "| type | when | payload | other names |", "|---|---|---|---|"]
        aliases = ", ".join(f"`{alias}`" for alias in kind.aliases)
        reserved = " *Reserved: nobody but a client emits it.*" if kind.reserved else ""
        parts.append(f"| `{kind.type}` | {_cell(kind.description)}{reserved} | {_fields(kind)} | {aliases} |")
    return "\n".join(parts) + "\n"


def _fields(kind: EventType) -> str:
    """The required ones first; with the names that stand for each."""
    properties, required = kind.schema.get("properties", {}), kind.schema.get("required", [])
    others: dict[str, list[str]] = {}
    for other, stands_for in kind.schema.get("x-synonyms", {}).items():
        for name in stands_for[:1]:
            others.setdefault(name, []).append(f"`{other}`")
    names = sorted(properties, key=lambda name: name not in required)
    shown = [f"**`{name}`**" if name in required else f"`{name}`" for name in names]
    also = [f" ({', '.join(others[name])})" if name in others else "" for name in names]
    return ", ".join([*map("".join, zip(shown, also, strict=True)), *(["…"] if kind.open else [])])


def _table(title: str, settings: list[Setting] | tuple[Setting, ...]) -> list[str]:
    lines = ["", f"## {title}", "", "| variable | type | default | unit | what it is |", "|---|---|---|---|---|"]
    for setting in settings:
        default = f"`{setting.default}`" if setting.default else ""
        row = (f"`{setting.name}`", _cell(setting.type), default, setting.unit, _cell(setting.description))
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    stale = []
    pages = (("settings.md", settings_page()), ("limits.md", limits_page()), ("events.md", events_page()))
    for name, text in pages:
        file = DOCS / name
        if not file.exists() or file.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                file.write_text(text)
    if stale:
        print("stale:" if "--check" in sys.argv else "written:", ", ".join(f"docs/{name}" for name in stale))
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
