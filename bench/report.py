"""docs/performance.md: the tables of the last runs, written by the command that made them."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
TITLES = {
    "events": "The event log",
    "delivery": "Webhooks",
    "start": "Starting, and memory when idle",
    "chain": "From a note to its webhook",
    "notes": "From a folder of notes to memories",
    "kills": "Two replicas of each role, killed in turn",
    "servers": "The gateway's server",
}
_HEAD = """# Performance

Each table is what `scripts/bench NAME` printed on its last run, on the machine that it names; the command wrote this
page. A figure's *floor* is the same work by the bare libraries, measured in the same run, and the *ratio* is what
counts: numbers of two machines, or of two days on one, say little about each other.
"""


def write(results: Path) -> None:
    """Renders every result in a directory."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    parts = [_section(name, found[name]) for name in TITLES if name in found]
    PAGE.write_text("\n".join([_HEAD, *parts]))


def _section(name: str, result: dict[str, Any]) -> str:
    machine = result["machine"]
    about = f"{result['at'][:10]}, {machine['cores']} cores, load {machine['load']} before, Python {machine['python']}"
    columns = list(dict.fromkeys(column for row in result["rows"] for column in row))
    lines = [
        f"## {TITLES[name]}",
        f"`scripts/bench {name}`: {about}.",
        "",
        _line([column.replace("MiB", "MiB held") for column in columns]),
        _line(["---"] * len(columns)),
        *(_line([str(row.get(column, "")) for column in columns]) for row in result["rows"]),
        "",
    ]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
