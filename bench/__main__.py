"""`scripts/bench [NAME …]`: runs benchmarks, prints a table of their figures, writes bench/results/NAME.json and
docs/performance.md. Exit code 1 where something was lost that must not be."""

import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench import chain, delivery, events, kills, notes, report, servers, start

Rows = list[dict[str, object]]
BENCHES: dict[str, Callable[[], Rows]] = {
    "start": start.run,
    "chain": chain.run,
    "servers": servers.run,
    "events": events.run,
    "notes": notes.run,
    "delivery": delivery.run,
    "kills": kills.run,
}
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    unknown = set(names) - BENCHES.keys()
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    lost = False
    for name in names or BENCHES:
        machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "python": platform.python_version()}
        print(f"\n{name}  ({machine['cores']} cores, load {machine['load']} before, Python {machine['python']})")
        rows = BENCHES[name]()
        _print(rows)
        lost |= any(row.get("") == kills.LOST for row in rows)
        result = {
            "bench": name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "rows": rows,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        report.write(RESULTS)
    return int(lost)


def _print(rows: Rows) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(columns))]
    for line in table:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
