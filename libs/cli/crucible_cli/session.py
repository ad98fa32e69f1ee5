"""The session of a command: its gateway and key, its output, and its end."""

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.text import Text

from crucible_cli.display import clean
from crucible_cli.errors import explain
from crucible_cli.files import read_bytes
from crucible_cli.layout import UNCUT
from crucible_cli.up.state import DataDir, UpState, default_root, read_admin_key
from crucible_client import Crucible, Page
from crucible_client.settings import DEFAULT_URL
from crucible_core.errors import CrucibleError, InvalidError, NotFoundError

_UP_FILE_BYTES = 64 * 1024
P = ParamSpec("P")
T = TypeVar("T")
_PAGE = 1000
Url = Annotated[str | None, typer.Option("--url", help="The gateway (env CRUCIBLE_URL).", rich_help_panel="Gateway")]
Key = Annotated[
    str | None, typer.Option("--key", help="The API key (env CRUCIBLE_API_KEY).", rich_help_panel="Gateway")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="The data directory of `crucible up`.", rich_help_panel="Gateway")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
Wide = Annotated[bool, typer.Option("--wide", help="Cut nothing to the width of the terminal.")]


class Gateway(msgspec.Struct, frozen=True):
    url: str
    api_key: str | None


def find_gateway(url: str | None, key: str | None, data: DataDir, environ: Mapping[str, str]) -> Gateway:
    """The gateway and the key. The key of a local `up` is sent to that `up` only."""
    up = find_up(data)
    chosen = (url or environ.get("CRUCIBLE_URL") or (up.url if up else DEFAULT_URL)).rstrip("/")
    api_key = key or environ.get("CRUCIBLE_API_KEY")
    if not api_key and up and chosen == up.url.rstrip("/"):
        api_key = read_admin_key(data)
    return Gateway(chosen, api_key or None)


def find_up(data: DataDir) -> UpState | None:
    """The `crucible up` that runs on this data, or None; what a killed one left behind does not count."""
    try:
        state = msgspec.json.decode(read_bytes(data.up_file, _UP_FILE_BYTES), type=UpState)
        os.kill(state.pid, 0)
    except (OSError, InvalidError, msgspec.DecodeError):
        return None
    return state


class Session(msgspec.Struct, frozen=True):
    """`out` is for the answer, `err` for everything else; with `json`, `out` gets JSON only. `wide` asks for all
    there is to see."""

    gateway: Gateway
    data: DataDir
    json: bool
    out: Console
    err: Console
    wide: bool = False

    def connect(self) -> Crucible:
        """A client; use it in a `with`."""
        return Crucible(self.gateway.url, self.gateway.api_key, environ={})

    def show(self, value: T, view: Callable[[T], RenderableType]) -> None:
        """The one answer of a command."""
        if self.json:
            typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
        else:
            self.out.print(view(value))

    def list(self, name: str, values: Sequence[T], view: Callable[[Sequence[T]], RenderableType]) -> None:
        """A list as the answer: in JSON an object with that one member, as the API has it."""
        self.show({name: values}, lambda _: view(values))

    def first(
        self, name: str, limit: int, page: Callable[..., Page[T]], view: Callable[[Sequence[T]], RenderableType]
    ) -> None:
        """The beginning of a list that comes in pages."""
        found: list[T] = []
        cursor: str | None = None
        while len(found) < limit:
            answer = page(page_size=min(limit - len(found), _PAGE), cursor=cursor)
            found += answer.items
            cursor = answer.next_cursor
            if cursor is None:
                break
        self.list(name, found, view)
        if cursor is not None:
            self.note(f"The first {len(found):,}; --limit shows more.")

    def line(self, value: T, view: Callable[[T], RenderableType]) -> None:
        """One entry of a stream: a line of NDJSON, or what `view` makes of it."""
        if self.json:
            typer.echo(msgspec.json.encode(value))
        else:
            self.out.print(view(value), soft_wrap=True)

    def confirm(self, question: str, yes: bool) -> None:
        """Asks before something is gone. Ends the command where the answer is no, or nobody is there to answer."""
        if yes:
            return
        try:
            agreed = typer.confirm(question, err=True)
        except typer.Abort:
            raise CrucibleError(f"{question} Nobody answered: --yes does it without asking") from None
        if not agreed:
            self.note("nothing was changed")
            raise typer.Exit(1)

    @contextlib.contextmanager
    def removing(self, what: str) -> Iterator[None]:
        """Says of what is removed twice that it is gone."""
        try:
            yield
        except NotFoundError as error:
            raise NotFoundError(f"{what} is gone already, or never was") from error

    def note(self, text: str) -> None:
        """Something beside the answer."""
        self.err.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def open_session(
    url: str | None,
    key: str | None,
    data: Path | None,
    json: bool,
    wide: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Session:
    where = DataDir((data or default_root(environ)).expanduser().absolute())
    return Session(find_gateway(url, key, where, environ), where, json, _console(False, wide), _console(True), wide)


def command(
    app: typer.Typer, name: str | None = None, *, table: bool = False, alias: str | None = None
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Registers a function of a session as a command: it gains --url, --key, --data and --json (and --wide where it
    shows a `table`), and its errors become a line on stderr and exit code 1. `alias` is a second name, unlisted."""

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        def run(
            url: Url = None,
            key: Key = None,
            data: Data = None,
            json: Json = False,
            wide: Wide = False,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> None:
            console = _console(True)
            try:
                function(open_session(url, key, data, json, wide), *args, **kwargs)
                sys.stdout.flush()
            except CrucibleError as error:
                console.print(explain(error), soft_wrap=True)
                raise typer.Exit(1) from error
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise  # whoever reads has had enough: that ends the command, and needs no word
                console.print(Text.assemble(("error: ", "bold red"), _reason(error)), soft_wrap=True)
                _discard_output()
                raise typer.Exit(1) from error

        disguised = _with_options(run, function, table)
        app.command(name or function.__name__.removesuffix("_").replace("_", "-"))(disguised)
        if alias:
            app.command(alias, hidden=True)(disguised)
        return function

    return register


def _reason(error: OSError) -> str:
    """A failure of the system, with the file that it is about."""
    about = f"{clean(os.fsdecode(error.filename), 400)}: " if isinstance(error.filename, str | bytes) else ""
    return about + (error.strerror or "the system refused it")


def _discard_output() -> None:
    """Drops the rest of the output, which the process would try to write once more as it ends, and complain again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_options(run: Callable[..., None], function: Callable[..., None], table: bool) -> Callable[..., None]:
    """`run` with the parameters of `function` (the session aside) before its own, for typer to read."""
    theirs = list(inspect.signature(function).parameters.values())[1:]
    names = ("url", "key", "data", "json", *(("wide",) if table else ()))
    ours = [p for p in inspect.signature(run).parameters.values() if p.name in names]
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*theirs, *ours)]

    def command(**given: Any) -> None:
        run(**given)

    functools.update_wrapper(command, function)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _console(stderr: bool, wide: bool = False) -> Console:
    """Strings are data, not markup. Off a terminal nothing is cut, unless COLUMNS is set."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if wide or (not console.is_terminal and "COLUMNS" not in os.environ):
        console.width = UNCUT
    return console
