"""From the save of a note to the arrival of the webhook at its endpoint: File → Memory → hook → link → delivery."""

import statistics
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.running import CRUCIBLE, EXAMPLES, Running, running, until

RUNS = 20
LINE = "A search by meaning finds the passages and a language model writes an answer from them, number {}. #research"


def run() -> list[dict[str, object]]:
    arrivals: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            arrivals.append(time.perf_counter())
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with running() as stack:
        _prepare(stack, f"http://127.0.0.1:{server.server_address[1]}/")
        times = _measure(stack, arrivals)
    server.shutdown()
    return [
        {
            "what": "note saved to webhook arrived, median",
            "value": f"{statistics.median(times) * 1000:.0f} ms",
            "target": "< 500 ms",
        },
        {"what": "  least", "value": f"{min(times) * 1000:.0f} ms"},
        {"what": "  most", "value": f"{max(times) * 1000:.0f} ms"},
        {"what": "  runs", "value": len(times)},
    ]


def _prepare(stack: Running, url: str) -> None:
    """The example hook without its debounce, which would let it fire once in five seconds, and a webhook."""
    for file in EXAMPLES.iterdir():
        text = file.read_text().replace("debounce_ms: 5000", "debounce_ms: 0")
        (stack.data / "hooks" / file.name).write_text(text)
    with stack.http() as http:
        until(lambda: len(http.get("/api/v1/hooks").json()["hooks"]) >= 1, 10)
        wanted = {"name": "bench", "url": url, "event_filters": [{"event_type": "Memory.Linked"}]}
        assert http.post("/api/v1/webhooks", json=wanted).status_code == 201


def _measure(stack: Running, arrivals: list[float]) -> list[float]:
    """One new note each time, which the hook links to the one before; only the first arrival counts."""
    folder = stack.data / "bench-notes"
    folder.mkdir()
    watch = subprocess.Popen(
        [CRUCIBLE, "watch", str(folder), "--data", str(stack.data)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        _write(folder, 0)
        assert watch.stdout is not None
        watch.stdout.readline()
        time.sleep(1)
        times = []
        for number in range(1, RUNS + 1):
            seen = len(arrivals)
            began = time.perf_counter()
            _write(folder, number)
            until(lambda seen=seen: len(arrivals) > seen, 20)
            times.append(arrivals[seen] - began)
            _until_quiet(arrivals)
        return times
    finally:
        watch.terminate()
        watch.wait(10)


def _write(folder: Path, number: int) -> None:
    (folder / f"note-{number}.md").write_text(f"# Note {number}\n\n{LINE.format(number)}\n")


def _until_quiet(arrivals: list[float]) -> None:
    while time.perf_counter() - arrivals[-1] < 0.5:
        time.sleep(0.05)
