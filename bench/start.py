"""From `crucible up` to the first accepted event, and what the idle stack holds in memory (PSS over all processes)."""

import statistics
import time
from pathlib import Path

import psutil

from bench.running import running

RUNS = 5
SETTLE_S = 5.0
EVENT = {"type": "Custom.Bench", "payload": {}}


def run() -> list[dict[str, object]]:
    firsts: list[float] = []
    memory: dict[str, float] = {}
    for _ in range(RUNS):
        with running() as stack, stack.http() as http:
            assert http.post("/api/v1/events", json=EVENT).status_code == 201
            firsts.append(time.perf_counter() - stack.began)
            if not memory:
                time.sleep(SETTLE_S)
                memory = _memory(stack.process.pid)
    rows: list[dict[str, object]] = [
        {
            "what": "up to first accepted event, median",
            "value": f"{statistics.median(firsts):.2f} s",
            "target": "< 5 s",
        },
        {"what": "idle stack, PSS", "value": f"{sum(memory.values()):.0f} MB", "target": "≤ 200 MB"},
    ]
    rows += [{"what": f"  {name}", "value": f"{size:.0f} MB"} for name, size in sorted(memory.items())]
    return rows


def _memory(pid: int) -> dict[str, float]:
    parent = psutil.Process(pid)
    found: dict[str, float] = {}
    for process in [parent, *parent.children(recursive=True)]:
        name = _name(process.cmdline()) if process.pid != pid else "supervisor"
        found[name] = found.get(name, 0) + process.memory_full_info().pss / 1e6
    return found


def _name(command: list[str]) -> str:
    module = next((part for part in command if part.startswith("crucible_")), None)
    return module or Path(command[0]).name
