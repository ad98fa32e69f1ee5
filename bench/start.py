"""From `crucible up` to the first accepted event, and what the idle stack costs, empty and with 20,000 idle handlers:
memory (PSS over all processes) and processor time."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from bench.running import Row, Running, running

RUNS = 3
HANDLERS = 10_000
"""Hooks, and as many webhooks."""
AT_ONCE = 16
SETTLE_S = 5.0
IDLE_S = 15.0
EVENT = {"type": "Custom.Bench", "payload": {}}
HOOK = {
    "trigger": {"events": [{"type": "Custom.Never"}], "timing": "Post"},
    "action": {"type": "Script", "script": "log('never')"},
}


def run() -> list[Row]:
    firsts = [_first() for _ in range(RUNS - 1)]
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as root:
        data = Path(root, "data")
        with running(data) as stack:
            firsts.append(_accepted(stack))
            empty, idle = _idle(stack)
            began = time.perf_counter()
            asyncio.run(_register(stack))
            registered = time.perf_counter() - began
        with running(data) as stack:
            again = _accepted(stack)
            full, busy = _idle(stack)
    more = sum(full.values()) - sum(empty.values())
    return [
        _row("up to first accepted event, median", statistics.median(firsts), "s", 5, "<"),
        _row("idle stack, PSS", sum(empty.values()), "MB", 200),
        _row("idle stack, of a core", sum(idle.values()), "%", 2),
        _row(f"{2 * HANDLERS:,} handlers registered in", registered, "s", 120),
        _row("  up to first accepted event with them", again, "s", 6),
        _row("  PSS over empty", more, "MB", 60),
        _row("  idle, of a core", sum(busy.values()), "%", 2),
        *(_of(name, empty, full, idle, busy) for name in sorted(empty)),
    ]


def _first() -> float:
    with running() as stack:
        return _accepted(stack)


def _accepted(stack: Running) -> float:
    with stack.http() as http:
        assert http.post("/api/v1/events", json=EVENT).status_code == 201
    return time.perf_counter() - stack.began


def _idle(stack: Running) -> tuple[dict[str, float], dict[str, float]]:
    """The memory (MB) and the processor time (hundredths of a core) of each process."""
    time.sleep(SETTLE_S)
    memory = {name: process.memory_full_info().pss / 1e6 for name, process in stack.processes().items()}
    before, began = _used_s(stack), time.perf_counter()
    time.sleep(IDLE_S)
    after, took = _used_s(stack), time.perf_counter() - began
    return memory, {name: 100 * (after[name] - used) / took for name, used in before.items()}


def _used_s(stack: Running) -> dict[str, float]:
    """By the scheduler's own count (proc_pid_schedstat): an idle process seldom runs for a whole tick."""
    return {
        name: sum(_ran_ns(process.pid, thread.id) for thread in process.threads()) / 1e9
        for name, process in stack.processes().items()
    }


def _ran_ns(pid: int, thread: int) -> int:
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])


async def _register(stack: Running) -> None:
    headers = {"Authorization": f"Bearer {stack.key}"}
    numbers = iter(range(HANDLERS))

    async def some(http: httpx.AsyncClient) -> None:
        for number in numbers:
            hook = await http.post("/api/v1/hooks", json={"name": f"idle-{number}", **HOOK})
            webhook = {"name": f"idle {number}", "url": f"http://127.0.0.1:9/{number}"}
            filters = [{"event_type": "Custom.Never"}]
            made = await http.post("/api/v1/webhooks", json={**webhook, "event_filters": filters})
            assert hook.status_code == made.status_code == 201, hook.text + made.text

    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60) as http:
        await asyncio.gather(*(some(http) for _ in range(AT_ONCE)))


def _row(what: str, value: float, unit: str, target: float, sign: str = "≤") -> Row:
    good = value <= target
    digits = 0 if value >= 100 else 1 if unit == "MB" else 2
    wanted = f"{sign} {target:g} {unit}"
    return {"what": what, "value": f"{value:.{digits}f} {unit}", "target": wanted, "": "ok" if good else "MISSED"}


def _of(
    name: str, empty: dict[str, float], full: dict[str, float], idle: dict[str, float], busy: dict[str, float]
) -> Row:
    memory = f"{empty[name]:.1f} → {full.get(name, 0):.1f} MB"
    return {"what": f"  {name}", "value": f"{memory}, {idle[name]:.2f} → {busy.get(name, 0):.2f} %"}
