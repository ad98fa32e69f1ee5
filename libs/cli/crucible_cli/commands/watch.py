"""`crucible watch`: keeps the log in step with a folder of notes."""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import watchfiles
from rich.text import Text

from crucible_cli.display import clean
from crucible_cli.errors import explain
from crucible_cli.notes import (
    Change,
    FolderState,
    Note,
    changes,
    is_same_log,
    load_state,
    payload,
    problem,
    save_state,
    scan,
    state_file,
)
from crucible_cli.session import Session, command
from crucible_cli.tree import COLOURS
from crucible_client import Crucible
from crucible_core.envelope import DEFAULT_WORLD
from crucible_core.errors import CrucibleError, LimitedError, NotFoundError, UnavailableError
from crucible_core.limits import WATCHED_FOLDERS
from crucible_core.suggest import did_you_mean

app = typer.Typer()

BATCH_EVENTS = 200
BATCH_BYTES = 512 * 1024
STEP_MS = 25
"""A burst of writes is over when nothing happened for so long."""
TICK_MS = 1000
RESCAN_S = 30.0
"""The interval at which everything is looked at, whatever changes the system reports."""
AGAIN_S = 0.5
MOST_NOTES = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that no entity may hold."""


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one change: accepted (`sequence`), or refused (`error`)."""

    type: str
    path: str
    old_path: str | None
    id: str | None
    sequence: int | None
    error: str | None = None
    note: str | None = None
    """A remark on an accepted one, such as that its content is left out."""


class AwayError(CrucibleError):
    """The folder cannot be read now."""


class Folder(msgspec.Struct, frozen=True):
    """A watched folder, and the file of its state."""

    root: Path
    state_file: Path
    world_id: str | None = None
    room_id: str | None = None


@command(app)
def watch(
    session: Session,
    directory: Annotated[Path, typer.Argument(help="The folder of notes (*.md, *.markdown), with its subfolders.")],
    once: Annotated[bool, typer.Option("--once", help="Send what changed since the last time, and exit.")] = False,
    world: Annotated[str | None, typer.Option(help="The world of the events.")] = None,
    room: Annotated[str | None, typer.Option(help="The room of the events.")] = None,
) -> None:
    """Turn a folder of Markdown notes into File events, until Ctrl-C.

    Changes made while it was not running are found at the start.
    """
    root = _root(directory)
    file = state_file(session.data.root, (session.gateway.url, str(root), world, room))
    folder = Folder(root, file, world, room)

    latest: str | None = None

    def report(outcome: Outcome) -> None:
        nonlocal latest
        latest = outcome.id or latest
        session.line(outcome, _line)

    with session.connect() as crucible, contextlib.suppress(KeyboardInterrupt):
        watcher = Watcher(crucible, folder, report, session.note)
        watcher.begin()
        if latest is not None:
            session.note(f"See what follows from a note: crucible events trace {latest}")
        if not once:
            session.note(f"watching {clean(str(root), 400)} — Ctrl-C ends it")
            watcher.follow(threading.Event())


def _root(directory: Path) -> Path:
    shown = clean(str(directory), 400)
    try:
        root = directory.expanduser().resolve()
        str(root).encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"{shown}: the folder's path is not UTF-8, rename it") from error
    except (OSError, RuntimeError) as error:  # ~nobody has no home; links lead in a circle
        reason = getattr(error, "strerror", None) or "its path cannot be resolved"
        raise typer.BadParameter(f"{shown}: {reason}") from error
    if not root.is_dir():
        raise typer.BadParameter(f"{shown} is not a folder")
    return root


class Watcher:
    """Sends what differs between a folder and its ledger, now and whenever something happens there."""

    def __init__(
        self, crucible: Crucible, folder: Folder, report: Callable[[Outcome], None], note: Callable[[str], None]
    ) -> None:
        self._crucible = crucible
        self._folder = folder
        self._report = report
        self._note = note
        self._state = load_state(folder.state_file, folder.root)
        self._noted: set[str] = set()

    def begin(self) -> None:
        """Sends all that changed since the last time. Raises what the gateway refuses, or that it is away."""
        check_place(self._crucible, self._folder)
        if not is_same_log(self._crucible, self._state):
            self._note("this gateway has another log: all notes are sent to it")
            self._state = FolderState(self._state.root, self._state.salt)
        self._save()  # Ids come from its salt: it must be there again if the first answer is lost.
        self.catch_up()

    def follow(self, stop: threading.Event) -> None:
        """Sends changes as they happen, until `stop`. A gateway or a folder that goes away is waited for."""
        due = 0.0
        reported = False
        for touched in self._bursts(stop):
            if touched == [] and time.monotonic() < due:
                continue
            try:
                self.catch_up(touched or ())
                due, reported = time.monotonic() + RESCAN_S, False
            except (UnavailableError, LimitedError, AwayError) as error:
                due = 0.0
                if not reported:
                    self._note(f"{clean(error.detail, 400)}: waiting; changes are kept")
                reported = True

    def catch_up(self, touched: Sequence[str] = ()) -> None:
        """Sends every difference and keeps the ledger. Raises UnavailableError, after which it may be called again."""
        after = self._scan(touched)
        if not self._state.folders:
            self._state.notes |= {path: note for path, note in after.items() if path.endswith("/")}
            self._state.folders = True
        differences = changes(self._state.notes, after)
        for batch in _batches(self._prepare(differences)):
            self._send(batch)
        if not differences and after != self._state.notes:
            # Files were written with the same content: only their times are new.
            self._state.notes = after
            self._save()

    def _scan(self, touched: Sequence[str]) -> dict[str, Note]:
        try:
            found = scan(self._folder.root, self._state.notes, frozenset(touched))
        except FileNotFoundError as error:
            raise AwayError(f"the folder is gone: {error.filename or self._folder.root}") from error
        except OSError as error:
            raise AwayError(f"cannot read {error.filename or self._folder.root}: {error.strerror}") from error
        for path, reason in found.passed.items():
            self._note_once(f"{path} {reason}")
        return found.notes

    def _note_once(self, text: str) -> None:
        """Notes it once."""
        if text not in self._noted:
            if len(self._noted) >= MOST_NOTES:
                self._noted.clear()
            self._noted.add(text)
            self._note(clean(text, 400))

    def _prepare(self, differences: Sequence[Change]) -> Iterator[tuple[Change, dict[str, Any], int]]:
        for difference in differences:
            ready = payload(self._folder.root, difference)
            if ready is not None:
                change, fields = ready
                yield change, self._event(change, fields), len(fields.get("content", ""))

    def _event(self, change: Change, fields: dict[str, Any]) -> dict[str, Any]:
        event = {
            "type": f"File.{change.event}",
            "payload": fields,
            "entity": None if _CONTROL.search(change.path) else change.path.rstrip("/"),
            "id": self._state.id_of(change),
            "world_id": self._folder.world_id,
            "room_id": self._folder.room_id,
        }
        return {name: value for name, value in event.items() if value is not None}

    def _send(self, batch: Sequence[tuple[Change, dict[str, Any]]]) -> None:
        answer = self._crucible.events.append_batch([event for _, event in batch])
        away = None
        for (change, event), item in zip(batch, answer.results, strict=True):
            error = item.exception
            if isinstance(error, UnavailableError | LimitedError):
                away = error
                continue
            self._state.settle(change, item)
            reason = None if error is None else explain(error).plain
            path, note = change.path.rstrip("/"), problem(event["payload"])
            self._report(Outcome(event["type"], path, change.old_path, item.id, item.sequence, reason, note))
        self._save()
        if away is not None:
            raise away

    def _save(self) -> None:
        save_state(self._folder.state_file, self._state)

    def _bursts(self, stop: threading.Event) -> Iterator[list[str] | None]:
        """The paths of each burst of changes; an empty list for each tick without one. None where anything may have
        changed: a watch begins, or broke off, or there are other folders than before."""
        while not stop.is_set():
            pause = 0.0
            try:
                yield from self._watch(stop)
            except (OSError, RuntimeError, ValueError) as error:
                # A name that is not UTF-8 ends the watch: nobody need hear of it, unless it is a note's.
                if "Unable to decode" not in str(error) and self._folder.root.is_dir():
                    self._note_once(f"changes are looked for every second: {error}")
                pause = AGAIN_S
            yield None
            stop.wait(pause)

    def _watch(self, stop: threading.Event) -> Iterator[list[str] | None]:
        root = self._folder.root
        inode, folders = _inode(root), _folders(root)
        notified = watchfiles.watch(
            *folders,
            watch_filter=lambda _, path: not _is_hidden(root, path),
            recursive=False,  # it would follow links, to folders that may be large, or lead back here
            step=STEP_MS,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
            stop_event=stop,
            ignore_permission_denied=True,
        )
        for number, burst in enumerate(notified):
            if _inode(root) != inode:
                return
            paths = [Path(path).relative_to(root).as_posix() for _, path in burst if Path(path).is_relative_to(root)]
            # Something may have happened before this watch began.
            yield paths if paths or number else None
            # A folder may have come after they were listed, and before this watch began.
            if (paths or not number) and _folders(root) != folders:
                return


def _folders(root: Path) -> list[str]:
    """The folders to watch, each by itself; of very many, the first."""
    found = []
    for folder, folders, _ in os.walk(root):
        found.append(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)[:WATCHED_FOLDERS]


def _inode(root: Path) -> int:
    try:
        return root.stat().st_ino
    except OSError:
        return 0


def check_place(crucible: Crucible, folder: Folder) -> None:
    """Raises NotFoundError where there is no such world or room: each note would be refused, and not sent again."""
    if folder.world_id is None and folder.room_id is None:
        return
    world = crucible.worlds.get(folder.world_id or DEFAULT_WORLD)
    rooms = [room.id for room in world.rooms]
    if folder.room_id is not None and folder.room_id not in rooms:
        asked = did_you_mean(folder.room_id, rooms)
        raise NotFoundError(f"there is no room {folder.room_id} in the world {world.id}{asked}")


def _batches(
    prepared: Iterator[tuple[Change, dict[str, Any], int]],
) -> Iterator[list[tuple[Change, dict[str, Any]]]]:
    batch: list[tuple[Change, dict[str, Any]]] = []
    held = 0
    for change, event, size in prepared:
        if batch and (len(batch) == BATCH_EVENTS or held + size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append((change, event))
        held += size
    if batch:
        yield batch


def _is_hidden(root: Path, path: str) -> bool:
    found = Path(path)
    return found.is_relative_to(root) and any(part.startswith(".") for part in found.relative_to(root).parts)


def _line(outcome: Outcome) -> Text:
    if outcome.error is not None:
        line = Text.assemble(("refused ", "red"), (outcome.type, "bold"), f"  {clean(outcome.path, 200)}  ")
        return line.append(clean(outcome.error.removeprefix("error: "), 400), "red")
    moved = f"{outcome.old_path} → {outcome.path}" if outcome.old_path else outcome.path
    line = Text.assemble((f"{outcome.sequence:>6}  ", "dim"), (outcome.type, f"bold {COLOURS['File']}"))
    line.append(f"  {clean(moved, 400)}").append(f"  {outcome.id}", "dim")
    return line.append(f"  {clean(outcome.note, 400)}", "yellow") if outcome.note else line
