"""`crucible demo`: the whole chain on a real file of a running system, read from the log itself."""

import base64
import contextlib
import queue
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
import uvicorn
from rich.console import Group, RenderableType
from rich.text import Text

from crucible_cli.commands.watch import Folder, Outcome, Watcher
from crucible_cli.display import clean
from crucible_cli.receiver import Delivery, receiver
from crucible_cli.session import Session, command, find_up
from crucible_cli.tree import render_trace
from crucible_cli.up.state import private_files
from crucible_client import Crucible
from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError, NotFoundError
from crucible_core.protocol.events import TraceNode, TraceReply
from crucible_core.protocol.hooks import RunRecord

T = TypeVar("T")

app = typer.Typer()

POST_HOOK, PRE_HOOK, WEBHOOK = "auto-link-related", "require-tags", "crucible-demo"
LINK, PROCESSED = "Memory.Linked", "File.Processed"
WORLD = "Made by crucible demo"
TIMEOUT_S = 20.0
# The finished note has no word that the related one has not: they are as alike as two notes can be.
RELATED = "# Retrieval basics\n\nSearch by meaning finds passages, a language model answers. #research\n"
DRAFT = "# Retrieval\n\nA draft. #research\n"
FINISHED = (
    "# Retrieval\n\nA language model answers by meaning; a search finds passages by meaning. Search finds, a model"
    " answers: language by language, passages by passages. #research\n"
)
INVALID = "---\nstatus: final\n---\n# Unfinished\n\nThis note says that it is final, but it has no tag at all.\n"


class Demo(msgspec.Struct, frozen=True):
    """The course of a demo. Times are in milliseconds since the note was saved; `denial` is the Pre hook's recorded
    run."""

    note: str
    trace: TraceReply
    delivery_id: str | None
    verified: bool | None
    invalid_note: str
    denied: TraceReply
    denial: RunRecord


@command(app)
def demo(
    session: Session,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave its hooks, its world and its notes; else nothing stays but the log.")
    ] = False,
) -> None:
    """Edit a real note and show all that follows: the memory, the hook, the link, the signed webhook; then a denial."""
    if find_up(session.data) is None:
        raise CrucibleError(f"no `crucible up` runs on {session.data.root}; start it, or name its --data")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    arrived: queue.Queue[Delivery] = queue.Queue()
    with session.connect() as crucible, endpoint(secret, arrived.put) as url, _progress(session) as say:
        say("installing the example hooks")
        with _hooks(session, crucible, keep), _webhook(crucible, url, secret), _world(session, crucible, keep) as world:
            found = _play(session, crucible, world, arrived, say)
    session.show(found, demo_view)


def demo_view(found: Demo) -> RenderableType:
    signature = Text("signature verified", "green") if found.verified else Text("signature NOT verified", "red")
    return Group(
        Text.assemble(("1. ", "bold"), "A note was edited: ", (clean(found.note, 300), "bold")),
        render_trace(found.trace),
        Text.assemble(f"The endpoint of {WEBHOOK} got {found.delivery_id}: ", signature),
        "",
        Text.assemble(("2. ", "bold"), "An invalid note was written: ", (clean(found.invalid_note, 300), "bold")),
        render_trace(found.denied),
        Text.assemble(
            ("denied", "bold red"), f" by the Pre hook {found.denial.hook}: ", (_reason(found.denial), "yellow")
        ),
        Text(f"{found.denial.event_type} was never stored; the file's own event was.", "dim"),
        "",
        Text(f"Read it again: crucible events trace {found.trace.correlation_id}", "dim"),
        Text("Its hooks are in examples/hooks; crucible demo --keep leaves them at work.", "dim"),
    )


def _reason(denial: RunRecord) -> str:
    output = denial.output
    return clean(str(output.get("deny") if isinstance(output, dict) else denial.error), 300)


def _play(
    session: Session, crucible: Crucible, world: str, arrived: "queue.Queue[Delivery]", say: Callable[[str], None]
) -> Demo:
    folder = _folder(session, world)
    (folder / "retrieval-basics.md").write_text(RELATED)
    note = folder / "retrieval.md"
    note.write_text(DRAFT)
    with _watch(crucible, folder, world) as saved:
        say("waiting until both notes are memories")
        for _ in range(2):
            _wait_for_trace(crucible, _next(saved, "File.Created"), "Memory.Created")
        _wait_for_debounce(crucible, say)
        say("editing the note")
        note.write_text(FINISHED)
        edit = _next(saved, "File.Modified")
        delivery = _wait_for_delivery(arrived, _correlation(crucible, edit))
        say("reading what the log says of it")
        trace = _wait_for_trace(crucible, edit, LINK, "Hook.Triggered", "Hook.Executed", PROCESSED)
        invalid = folder / "unfinished.md"
        invalid.write_text(INVALID)
        refused = _next(saved, "File.Created")
        denial = _wait_for_denial(crucible, refused)
        denied = _wait_for_trace(crucible, refused, "Hook.Executed", PROCESSED)
    return Demo(str(note), trace, delivery.delivery_id, delivery.verified, str(invalid), denied, denial)


# ---- surroundings of the demo ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def endpoint(secret: str, report: Callable[[Delivery], None]) -> Iterator[str]:
    """A receiver in a thread; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(receiver(secret, report), http="h11", log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(5)


@contextlib.contextmanager
def _world(session: Session, crucible: Crucible, keep: bool) -> Iterator[str]:
    """A world where no earlier note is found, with a folder for its notes. What happened there stays in the log."""
    for old in crucible.worlds.list(page_size=1000):
        if old.description == WORLD and not keep:  # a demo that was killed
            crucible.worlds.delete(old.id)
    name = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    world = crucible.worlds.create(name, description=WORLD).id
    folder = _folder(session, world)
    try:
        with private_files():
            folder.mkdir(parents=True)
            yield world
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
            crucible.worlds.delete(world)


def _folder(session: Session, world: str) -> Path:
    return session.data.root / "demo" / world


@contextlib.contextmanager
def _webhook(crucible: Crucible, url: str, secret: str) -> Iterator[None]:
    for old in crucible.webhooks.list():
        if old.name == WEBHOOK:  # a demo that was killed
            crucible.webhooks.delete(old.id)
    made = crucible.webhooks.create(WEBHOOK, url, [LINK], auth={"type": "hmac", "secret": secret})
    try:
        yield
    finally:
        crucible.webhooks.delete(made.id)


@contextlib.contextmanager
def _watch(crucible: Crucible, folder: Path, world: str) -> Iterator["queue.Queue[Outcome]"]:
    saved: queue.Queue[Outcome] = queue.Queue()
    watcher = Watcher(crucible, Folder(folder, folder / ".ledger.json", world), saved.put, lambda _: None)
    watcher.begin()
    stop = threading.Event()
    thread = threading.Thread(target=watcher.follow, args=(stop,), daemon=True)
    thread.start()
    try:
        yield saved
    finally:
        stop.set()
        thread.join(5)


@contextlib.contextmanager
def _progress(session: Session) -> Iterator[Callable[[str], None]]:
    with session.err.status("starting") as status:
        yield lambda text: status.update(text) if session.err.is_terminal else None


def examples() -> Path:
    """The example hooks: beside this package where it is installed, else in the repository."""
    installed = Path(__file__).parents[1] / "examples"
    return installed if installed.is_dir() else Path(__file__).parents[4] / "examples" / "hooks"


@contextlib.contextmanager
def _hooks(session: Session, crucible: Crucible, keep: bool) -> Iterator[None]:
    """The examples in the watched directory; what was there before stays as it is, and stays there."""
    added = []
    try:
        for file in sorted(examples().iterdir(), key=lambda file: file.suffix == ".md"):
            target = session.data.hooks / file.name
            if not target.exists():
                added.append(target)
                shutil.copy(file, target)
        for name in (POST_HOOK, PRE_HOOK):
            _wait_until(partial(_is_active, crucible, name), f"the hook {name} to become active")
        yield
    finally:
        if not keep:
            for file in added:
                file.unlink(missing_ok=True)
            for file in added:
                if file.suffix == ".md":
                    _wait_until(partial(_is_gone, crucible, file.stem), f"the hook {file.stem} to end")


def _is_gone(crucible: Crucible, name: str) -> bool:
    try:
        crucible.hooks.get(name)
    except NotFoundError:
        return True
    return False


def _is_active(crucible: Crucible, name: str) -> bool:
    try:
        hook = crucible.hooks.get(name)
    except NotFoundError:
        return False
    if hook.state == "disabled":
        raise CrucibleError(f"the hook {name} is disabled: crucible hooks enable {name}")
    return hook.state == "active"


def _wait_for_debounce(crucible: Crucible, say: Callable[[str], None]) -> None:
    """Waits while the hook's debounce would keep it from firing."""
    hook = crucible.hooks.get(POST_HOOK)
    debounce_s = ((hook.definition or {}).get("options") or {}).get("debounce_ms", 0) / 1000
    if hook.counters.last_fired:
        left = datetime.fromisoformat(hook.counters.last_fired).timestamp() + debounce_s - time.time() + 0.2
        if left > 0:
            say(f"waiting {left:.0f} s: the hook fires at most once in {debounce_s:g} s (debounce_ms)")
            time.sleep(left)


# ---- waiting for effects ---------------------------------------------------------------------------------------------


def _next(saved: "queue.Queue[Outcome]", event_type: str) -> str:
    """The event id of the next change of that type that the watcher sent."""
    watched = _take(saved, lambda one: one.type == event_type, f"{event_type} of the note")
    if watched.id is None:
        raise CrucibleError(f"{event_type} of {watched.path} was refused: {watched.error}")
    return watched.id


def _correlation(crucible: Crucible, event_id: str) -> str:
    return crucible.events.get(event_id).metadata.correlation_id


def _wait_for_delivery(arrived: "queue.Queue[Delivery]", correlation: str) -> Delivery:
    def follows(one: Delivery) -> bool:
        return one.event is not None and one.event.metadata.correlation_id == correlation

    return _take(arrived, follows, f"the webhook that follows from {correlation}")


def _wait_for_trace(crucible: Crucible, event_id: str, *types: str) -> TraceReply:
    """The trace of an event, once it holds all these types."""
    correlation = _correlation(crucible, event_id)

    def complete() -> TraceReply | None:
        trace = crucible.events.trace(correlation)
        found = {event.dotted for event in _events(trace.roots)}
        return trace if set(types) <= found and (LINK not in types or _has_delivery(trace.roots)) else None

    return _wait_until(complete, f"{' and '.join(types)} after {event_id}")


def _has_delivery(nodes: list[TraceNode]) -> bool:
    return any(node.deliveries or _has_delivery(node.effects) for node in nodes)


def _wait_for_denial(crucible: Crucible, event_id: str) -> RunRecord:
    correlation = _correlation(crucible, event_id)

    def denial() -> RunRecord | None:
        runs = crucible.hooks.runs(PRE_HOOK)
        return next((run for run in runs if run.correlation_id == correlation and run.outcome == "denied"), None)

    return _wait_until(denial, f"the denial by {PRE_HOOK}")


def _events(nodes: list[TraceNode]) -> Iterator[Event]:
    for node in nodes:
        yield msgspec.json.decode(node.event, type=Event)
        yield from _events(node.effects)


def _take(source: "queue.Queue[T]", matches: Callable[[T], bool], what: str) -> T:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            one = source.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            raise CrucibleError(_timeout_text(what)) from None
        if matches(one):
            return one


def _wait_until(condition: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise CrucibleError(_timeout_text(what))
        time.sleep(0.05)


def _timeout_text(what: str) -> str:
    return f"waited {TIMEOUT_S:g} s in vain for {what}; `crucible doctor` shows what is not wired"
