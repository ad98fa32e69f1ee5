"""The data directory of `crucible up`: where each thing lies in it, its lock, the admin key and up.json."""

import contextlib
import fcntl
import os
import pwd
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from crucible_cli.display import clean
from crucible_cli.files import read_text
from crucible_core.errors import ConflictError, InvalidError, UnavailableError

KEY_PREFIX = "ck_"
_KEY_FILE_BYTES = 4096
_OURS = frozenset(
    "admin.key conditions.json demo hooks index lock logs nats processes.json up.json watch".split()  # noqa: SIM905
)
"""The names in a data directory."""
_CERTAIN = frozenset(("admin.key", "nats"))
"""Names that tell it from others."""


class UpState(msgspec.Struct, frozen=True):
    """The content of up.json while `crucible up` runs. `ports` are by service, `nats` among them."""

    url: str
    ports: dict[str, int]
    pid: int
    data: str
    started_at: str


class DataDir(msgspec.Struct, frozen=True):
    root: Path

    @property
    def key_file(self) -> Path:
        return self.root / "admin.key"

    @property
    def up_file(self) -> Path:
        return self.root / "up.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def processes_file(self) -> Path:
        return self.root / "processes.json"

    @property
    def conditions_file(self) -> Path:
        """The conditions of the programs of `crucible up`, while it runs."""
        return self.root / "conditions.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def hooks(self) -> Path:
        """The users' hook files, unless `--hooks` names another directory."""
        return self.root / "hooks"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    def index(self, service: str) -> Path:
        """The service's SQLite index, which may be deleted while it is stopped."""
        return self.root / "index" / service

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def default_root(environ: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/crucible`, else `~/.local/share/crucible`."""
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "crucible"


def open_data_dir(root: Path) -> DataDir:
    """The data directory at `root`, made if it is missing, with all that is in it its owner's alone: other users of
    this machine must not read events, keys and indexes. Raises UnavailableError where that cannot be."""
    data = DataDir(root.expanduser().absolute())
    try:
        if not data.root.is_symlink():
            data.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_own(data.root)
        _check_ours(data.root)
        for directory in (data.root, data.logs, data.root / "index"):
            directory.mkdir(exist_ok=True, mode=0o700)
        _make_private(data.root, data.hooks)
    except OSError as error:
        raise UnavailableError(f"cannot use the data directory {data.root}: {not_usable(error, data.root)}") from error
    return data


def not_usable(error: OSError, directory: Path) -> str:
    """Why a directory, or something in it, cannot be made or used."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "it is no directory, or something above it is none"
    else:
        reason = error.strerror or "the system refuses it"
    return reason if error.filename in (None, str(directory)) else f"{error.filename}: {reason}"


def _check_own(root: Path) -> None:
    """Whoever could put another directory in its place would get the key, and could change the log."""
    if root.is_symlink():
        where = os.path.realpath(root)
        raise UnavailableError(f"the data directory {root} is a link: name the directory itself, --data {where}")
    owner = root.stat().st_uid
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise UnavailableError(f"the data directory {root} belongs to {name}: give another one with --data")


def _check_ours(root: Path) -> None:
    """Somebody's home, say, is not taken for a data directory: their files would lose their modes."""
    names = os.listdir(root)
    others = sorted(name for name in names if name not in _OURS and not name.startswith(".") and name != "lost+found")
    if others and not set(names) >= _CERTAIN:
        one = clean(others[0], 80)
        raise UnavailableError(f"{root} has other things in it, such as {one}: give a new directory with --data")


def _make_private(root: Path, spared: Path) -> None:
    """Directories 0700, files 0600; links are left alone, and so are the users' own files below `spared`, and what is
    not ours."""
    root.chmod(0o700)
    for name in _OURS & set(os.listdir(root)):
        _restrict(root / name)
        if name != spared.name and not (root / name).is_symlink():
            _restrict_below(root / name, spared)


def _restrict_below(root: Path, spared: Path) -> None:
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            _restrict(Path(folder, name))
        directories[:] = [name for name in directories if Path(folder, name) != spared]


def _restrict(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # what a process of before is about to remove
        mode = path.lstat().st_mode
        wanted = 0o700 if stat.S_ISDIR(mode) else 0o600
        if (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and stat.S_IMODE(mode) != wanted:
            path.chmod(wanted)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Files that this process makes meanwhile are its owner's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def lock(data: DataDir) -> Iterator[None]:
    """Hold the data directory: ConflictError while another `crucible up` does. The lock ends with the process."""
    try:
        descriptor = os.open(data.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UnavailableError(f"cannot use the data directory {data.root}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
            who = f" (process {holder})" if holder else ""
            raise ConflictError(
                f"Crucible runs on {data.root} already{who}: stop it, or give this one another directory with --data"
            ) from error
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def admin_key(data: DataDir) -> str:
    """The admin key, made on the first start."""
    known = read_admin_key(data)
    if known is not None:
        data.key_file.chmod(0o600)
        return known
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    write_private(data.key_file, key + "\n")
    return key


def read_admin_key(data: DataDir) -> str | None:
    """The admin key, or None where there is none or this user may not read it."""
    try:
        return read_text(data.key_file, _KEY_FILE_BYTES).strip() or None
    except InvalidError:
        return None


def write_up(data: DataDir, state: UpState) -> None:
    write_private(data.up_file, msgspec.json.format(msgspec.json.encode(state), indent=2).decode() + "\n")


def remove_up(data: DataDir) -> None:
    data.up_file.unlink(missing_ok=True)


def write_private(file: Path, text: str) -> None:
    """Replace `file` as one step, readable by its owner alone."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
