"""Live events: from a POST to a WebSocket, and a hundred sockets at once."""

from bench.running import Row


def run() -> list[Row]:
    return []
